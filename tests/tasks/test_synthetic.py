"""Probes made of symbols, each read back by a plain loop over its tokens."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.task_config import (
    AssociativeRecallConfig,
    CompressionConfig,
    FuzzyRecallConfig,
    InContextRecallConfig,
    MemorizationConfig,
    NoisyRecallConfig,
    SelectiveCopyConfig,
)
from flaxformer_lab.tasks import make_task

NUMBER = 2048


def sequences(examples_of, config, number=64):
    """Lists of (inputs, targets, weights), one an example."""
    return [tuple(part.tolist() for part in one) for one in zip(*examples_of(config, NUMBER), strict=True)][:number]


def streams(examples_of, config, number=64):
    """(stream, weights) of tasks in which each token predicts the next one."""
    for inputs, targets, weights in sequences(examples_of, config, number):
        assert inputs[1:] == targets[:-1]
        yield [*inputs, targets[-1]], weights


# --------------------------------------------------------------------------------------------------- MAD's sizes

MAD = {
    InContextRecallConfig: (16, 128, 12_800),
    FuzzyRecallConfig: (16, 128, 12_800),
    NoisyRecallConfig: (32, 128, 12_800),
    SelectiveCopyConfig: (16, 256, 12_800),
    CompressionConfig: (16, 32, 12_800),
    MemorizationConfig: (256, 32, 256),
}


@pytest.mark.parametrize("kind", MAD)
def test_defaults_are_those_of_the_paper(kind):
    config = kind()
    assert (config.vocabulary, config.sequence_length, config.training_examples) == MAD[kind]
    assert config.evaluation_examples == 1280


def test_what_single_tasks_have_on_top_is_the_papers_too():
    assert (NoisyRecallConfig().noise, NoisyRecallConfig().noise_vocabulary) == (0.2, 16)
    assert (FuzzyRecallConfig().motif, SelectiveCopyConfig().copies) == (3, 16)


EVERY = [kind() for kind in MAD] + [AssociativeRecallConfig(), AssociativeRecallConfig(vocabulary=11, pairs=4)]


@pytest.mark.parametrize("config", EVERY)
def test_symbols_are_whole_numbers_of_the_vocabulary_and_all_of_it_is_used(examples_of, config):
    inputs, targets, weights = examples_of(config, NUMBER)
    assert inputs.dtype == targets.dtype == np.int32 and weights.dtype == np.float32
    assert inputs.shape == targets.shape == weights.shape == (NUMBER, config.sequence_length)
    assert set(np.unique(weights)) == {0, 1}
    seen = np.unique(np.concatenate([inputs.reshape(-1), targets[weights == 1]]))
    assert seen.min() >= 0 and seen.max() < config.vocabulary
    if config.vocabulary < 200:
        assert len(seen) == config.vocabulary
    assert len(np.unique(inputs, axis=0)) == NUMBER


# ------------------------------------------------------------------------------------------------------- MQAR

RECALLS = [
    AssociativeRecallConfig(),
    AssociativeRecallConfig(vocabulary=256, sequence_length=64, pairs=8, power=0.5),
    AssociativeRecallConfig(vocabulary=11, sequence_length=17, pairs=4),
]


@pytest.mark.parametrize("config", RECALLS)
def test_each_key_is_asked_once_and_answered_with_its_value(examples_of, config):
    half, opening = config.vocabulary // 2, 2 * config.pairs
    for inputs, targets, weights in sequences(examples_of, config):
        keys, values = inputs[0:opening:2], inputs[1:opening:2]
        assert all(1 <= key < half for key in keys) and len(set(keys)) == config.pairs
        assert all(half <= value < config.vocabulary for value in values) and len(set(values)) == config.pairs
        value_of = dict(zip(keys, values, strict=True))
        places = [place for place, weight in enumerate(weights) if weight]
        assert all(place >= opening and place % 2 == 0 for place in places)
        assert sorted(inputs[place] for place in places) == sorted(keys)
        assert [targets[place] for place in places] == [value_of[inputs[place]] for place in places]


def test_keys_and_values_are_spread_evenly_over_their_halves(examples_of):
    inputs, _, _ = examples_of(RECALLS[0], NUMBER)
    keys, values = np.bincount(inputs[:, 0:8:2].ravel(), minlength=64), np.bincount(inputs[:, 1:8:2].ravel())
    assert np.flatnonzero(keys).tolist() == list(range(1, 32))
    assert np.flatnonzero(values).tolist() == list(range(32, 64))
    for counts in (keys[1:32], values[32:]):
        assert stats.chisquare(counts).pvalue > 1e-3


def gaps(inputs, weights, config):
    """Where each key is asked, counted in pairs of tokens after the opening: [examples, pairs], the first one 1."""
    key = inputs[:, 0 : 2 * config.pairs : 2]
    asked = (inputs[:, None] == key[:, :, None]) & (weights[:, None] == 1)
    return 1 + (asked.argmax(axis=2) - 2 * config.pairs) // 2


@pytest.mark.parametrize("config", RECALLS[:2])
def test_gaps_follow_the_power_law_without_replacement(examples_of, config):
    inputs, _, weights = examples_of(config, NUMBER)
    slots = (config.sequence_length - 2 * config.pairs) // 2
    law = np.array([(i + 1) ** (config.power - 1) for i in range(slots)])
    law /= law.sum()
    # The second draw takes what the first has left.
    second = np.array([sum(law[i] * law[j] / (1 - law[i]) for i in range(slots) if i != j) for j in range(slots)])
    drawn = gaps(inputs, weights, config)
    for place, expected in ((0, law), (1, second)):
        counts = np.bincount(drawn[:, place] - 1, minlength=slots)
        assert stats.chisquare(counts, NUMBER * expected).pvalue > 1e-3
        assert stats.chisquare(counts, np.full(slots, NUMBER / slots)).pvalue < 1e-9


def test_gaps_with_power_1_are_as_likely_one_as_another(examples_of):
    config = AssociativeRecallConfig(power=1.0)
    inputs, _, weights = examples_of(config, NUMBER)
    drawn = gaps(inputs, weights, config)
    for pair in range(config.pairs):
        assert stats.chisquare(np.bincount(drawn[:, pair] - 1, minlength=12)).pvalue > 1e-3


def test_what_is_not_asked_is_random(examples_of):
    inputs, _, weights = examples_of(RECALLS[0], NUMBER)
    filler = inputs[:, 8:][weights[:, 8:] == 0]
    assert len(filler) == NUMBER * (24 - 4)
    assert stats.chisquare(np.bincount(filler, minlength=64)).pvalue > 1e-3


# ------------------------------------------------------------------------------------------------ MAD: recall


@pytest.mark.parametrize("config", [InContextRecallConfig(), InContextRecallConfig(vocabulary=7, sequence_length=9)])
def test_in_context_recall_asks_for_the_value_of_each_key_seen_before(examples_of, config):
    half = config.vocabulary // 2
    for stream, weights in streams(examples_of, config):
        value_of, asked = {}, []
        for place in range(0, config.sequence_length, 2):
            key, value = stream[place : place + 2]
            assert 0 <= key < half <= value < config.vocabulary
            asked += [float(key in value_of), 0.0]
            assert value_of.setdefault(key, value) == value
        assert weights == asked[: config.sequence_length]


@pytest.mark.parametrize("kind", [InContextRecallConfig, NoisyRecallConfig])
def test_keys_and_their_values_are_drawn_evenly(examples_of, kind):
    inputs, _, _ = examples_of(kind(), NUMBER)
    counts = np.bincount(inputs[:, :32].reshape(-1), minlength=16)
    # Keys are independent; values repeat within a sequence, so that their counts vary more.
    assert stats.chisquare(counts[:8]).pvalue > 1e-3
    np.testing.assert_allclose(counts[8:16], counts[8:16].mean(), rtol=0.1)


NOISY = [
    NoisyRecallConfig(),
    NoisyRecallConfig(noise=0.6),
    NoisyRecallConfig(vocabulary=9, noise_vocabulary=3, sequence_length=11),
    NoisyRecallConfig(noise=0.0),
]


@pytest.mark.parametrize("config", NOISY)
def test_noisy_recall_is_recall_between_tokens_of_noise(examples_of, config):
    content = config.vocabulary - config.noise_vocabulary
    for stream, weights in streams(examples_of, config):
        value_of, asked, rest = {}, [], list(stream)
        while rest:
            token = rest.pop(0)
            if token >= content:
                asked.append(0.0)
                continue
            assert token < content // 2
            asked.append(float(token in value_of))
            if rest:  # the stream may end between a key and its value
                value = rest.pop(0)
                assert content // 2 <= value < content
                assert value_of.setdefault(token, value) == value
                asked.append(0.0)
        assert weights == asked[: config.sequence_length]


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.8])
def test_noise_has_its_share_of_the_tokens(examples_of, noise):
    inputs, _, _ = examples_of(NoisyRecallConfig(noise=noise), NUMBER)
    share = (inputs >= 16).mean(axis=1)
    # The first token is never the second one of a pair, which adds less than half a token a sequence.
    assert share.mean() == pytest.approx(noise, abs=4 * share.std() / NUMBER**0.5 + 0.5 / 128)
    if noise:
        assert stats.chisquare(np.bincount(inputs[inputs >= 16] - 16)).pvalue > 1e-3


def pairs_of(stream, half):
    """The stream as (key's motif, value's motif) pairs: keys are below `half`, values are not."""
    runs = [tuple(run) for _, run in itertools.groupby(stream, key=lambda token: token >= half)]
    return list(itertools.zip_longest(runs[0::2], runs[1::2], fillvalue=()))


@pytest.mark.parametrize(
    "config",
    [
        FuzzyRecallConfig(),
        FuzzyRecallConfig(motif=1, sequence_length=12),
        FuzzyRecallConfig(vocabulary=7, motif=5, sequence_length=33),
    ],
)
def test_fuzzy_recall_asks_for_every_token_of_the_value_of_a_motif_seen_before(examples_of, config):
    half = config.vocabulary // 2
    for stream, weights in streams(examples_of, config):
        assert stream[0] < half
        pairs, value_of, key_of, asked = pairs_of(stream, half), {}, {}, []
        for number, (key, value) in enumerate(pairs):
            cut = number == len(pairs) - 1
            asked += [0.0] * len(key) + [float(key in value_of)] * len(value)
            if cut:
                assert value == value_of.get(key, value)[: len(value)]
                continue
            assert 1 <= len(key) <= config.motif and 1 <= len(value) <= config.motif
            assert value_of.setdefault(key, value) == value
            # The first token names the motif, so no motif is the beginning of another one.
            assert key_of.setdefault(key[0], key) == key
        # A token's weight is that of what follows it.
        assert weights == asked[1:]


def test_motifs_have_each_length_as_often(examples_of):
    firsts = [pairs_of(stream, 8)[0] for stream, _ in streams(examples_of, FuzzyRecallConfig(), NUMBER)]
    for part in (0, 1):
        assert stats.chisquare(np.bincount([len(pair[part]) for pair in firsts])[1:]).pvalue > 1e-3


@pytest.mark.parametrize("config", [InContextRecallConfig(), NoisyRecallConfig(), FuzzyRecallConfig()])
def test_each_sequence_has_a_map_of_its_own_and_asks_it_often(examples_of, config):
    inputs, targets, weights = examples_of(config, NUMBER)
    assert weights.sum(axis=1).min() > 10
    if not isinstance(config, FuzzyRecallConfig):
        answers = {int(answer) for answer in targets[(weights == 1) & (inputs == 3)]}
        assert answers == set(range(8, 16))


# ------------------------------------------------------------------------------- MAD: copy, squeeze, remember


@pytest.mark.parametrize(
    "config",
    [SelectiveCopyConfig(), SelectiveCopyConfig(vocabulary=4, sequence_length=11, copies=3)],
)
def test_selective_copy_repeats_the_contents_in_order(examples_of, config):
    blank, ask = config.vocabulary - 2, config.vocabulary - 1
    reading = config.sequence_length - config.copies
    for inputs, targets, weights in sequences(examples_of, config):
        contents = [token for token in inputs[:reading] if token != blank]
        assert len(contents) == config.copies and max(contents) < blank
        assert inputs[reading:] == [ask] * config.copies
        assert targets[reading:] == contents
        assert weights == [0.0] * reading + [1.0] * config.copies


def test_contents_to_copy_stand_anywhere_and_are_anything(examples_of):
    inputs, _, _ = examples_of(SelectiveCopyConfig(), NUMBER)
    there = inputs[:, :240] != 14
    # Without replacement the counts of places vary a little less than a multinomial's.
    assert stats.chisquare(there.sum(axis=0)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(inputs[:, :240][there], minlength=14)).pvalue > 1e-3


@pytest.mark.parametrize("config", [CompressionConfig(), CompressionConfig(vocabulary=3, sequence_length=12)])
def test_compression_asks_for_every_token_but_the_one_that_ends_them(examples_of, config):
    for inputs, targets, weights in sequences(examples_of, config):
        assert inputs[-1] == config.vocabulary - 1 and config.vocabulary - 1 not in inputs[:-1]
        assert targets[:-1] == inputs[:-1]
        assert weights == [1.0] * (config.sequence_length - 1) + [0.0]
    symbols = examples_of(config, NUMBER)[0][:, :-1]
    assert stats.chisquare(np.bincount(symbols.reshape(-1))).pvalue > 1e-3


def test_compression_decodes_every_position_from_the_last_token_alone(model, draw):
    task = make_task(CompressionConfig(vocabulary=5, sequence_length=6))
    network = task.network(model({"width": 8, "depth": 0, "norm.kind": "off", "position": "off"}))
    params, state = draw(network.shapes)
    apply = jax.jit(lambda inputs: network.apply(params, state, inputs)[0])
    one, other = jnp.array([[0, 1, 2, 3, 0, 4]]), jnp.array([[3, 3, 1, 0, 2, 4]])
    logits = np.asarray(apply(one))
    assert logits.shape == (1, 6, 5)
    # Without a body the last vector knows nothing of the others, and positions differ by their code alone.
    np.testing.assert_array_equal(logits, apply(other))
    assert not np.allclose(logits, apply(one[:, ::-1]))
    params = jax.tree.map(np.asarray, params)
    x = params["embedding"]["table"][4] + params["head"]["position"]
    hidden = x @ params["head"]["up"]["kernel"] + params["head"]["up"]["bias"]
    hidden = hidden * stats.norm.cdf(hidden)
    expected = hidden @ params["head"]["down"]["kernel"] + params["head"]["down"]["bias"]
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)


def memorized(inputs, targets, weights, vocabulary):
    """The map from keys to values that examples show."""
    value_of = {}
    for tokens, answers, asked in zip(inputs, targets, weights, strict=True):
        for place, token in enumerate(tokens):
            assert asked[place] == float(token == vocabulary - 1) == place % 2
            if asked[place]:
                key, value = int(tokens[place - 1]), int(answers[place])
                assert key < (vocabulary - 1) // 2 <= value < vocabulary - 1
                assert value_of.setdefault(key, value) == value
    return value_of


@pytest.mark.parametrize(
    "config",
    [MemorizationConfig(), MemorizationConfig(vocabulary=9, sequence_length=7), MemorizationConfig(vocabulary=3)],
)
def test_memorization_has_one_map_for_all_examples(examples_of, config):
    parts = [part[:256] for part in examples_of(config, NUMBER)]
    value_of = memorized(*parts, config.vocabulary)
    assert sorted(value_of) == list(range((config.vocabulary - 1) // 2))


def test_the_map_to_memorize_is_the_same_in_training_and_evaluation_of_any_run():
    maps = []

    @functools.partial(jax.jit, static_argnums=2)
    def prepare(stored, keys, training):
        return make_task(MemorizationConfig(vocabulary=33)).prepare(stored, keys, training=training)

    for seed, training, first in ((0, True, 0), (1, True, 0), (0, False, 2**30), (5, False, 2**30 + 2**29)):
        index = first + np.arange(256, dtype=np.int32)
        stored = {"index": index, "example_weight": np.ones(256, np.float32)}
        keys = jax.random.split(jax.random.key(seed), 256)
        batch = prepare(jax.tree.map(jnp.asarray, stored), keys, training)
        maps.append(memorized(*(np.asarray(batch[part]) for part in ("inputs", "targets", "loss_weights")), 33))
    assert maps[0] == maps[1] == maps[2] == maps[3] and len(set(maps[0].values())) > 5


def test_the_training_set_shows_every_key_to_memorize():
    task = make_task(MemorizationConfig())
    stored = {"index": jnp.arange(256), "example_weight": jnp.ones(256)}
    prepare = jax.jit(lambda stored, keys: task.prepare(stored, keys, training=True))
    batch = prepare(stored, jax.random.split(jax.random.key(0), 256))
    assert len(memorized(*(np.asarray(batch[part]) for part in ("inputs", "targets", "loss_weights")), 256)) == 127
