"""Probes made of symbols, each read back by a plain loop over its tokens."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.errors import ConfigError
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
        yield inputs, weights


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
    assert set(np.unique(weights)) <= {0, 1} and weights.any()
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


def recall_sequence(config, rng):
    """A plain reading of MAD's recall: tokens, and whether each is the value of a key that came before."""
    noise, noise_vocabulary = (getattr(config, name, 0) for name in ("noise", "noise_vocabulary"))
    content, pairs = config.vocabulary - noise_vocabulary, config.sequence_length // 2
    kept, value_of, tokens, asked = rng.integers(pairs), {}, [], []
    for number in range(pairs - 1):
        if number != kept and rng.random() < noise:
            tokens += [content + rng.integers(noise_vocabulary) for _ in range(2)]
            asked += [0, 0]
            continue
        key = rng.integers(content // 2)
        asked += [0, int(key in value_of)]
        tokens += [key, value_of.setdefault(key, rng.integers(content // 2, content))]
    if value_of:
        key = rng.choice(list(value_of))
        tokens, asked = [*tokens, key, value_of[key]], [*asked, 0, 1]
    return tokens, asked


def permutation(vocabulary, size, rng):
    return tuple(rng.choice(vocabulary, size, replace=False).tolist())


def fuzzy_sequence(config, rng, *, training):
    """A plain reading of MAD's fuzzy recall, padded on the left to one token more than `sequence_length`."""
    symbols, longest, length = config.vocabulary - 1, config.motif, config.sequence_length
    of_keys, of_values = np.arange(symbols // 2), np.arange(symbols // 2, symbols)

    def sizes():
        return rng.integers(1, longest + 1) if training else longest, rng.integers(1, longest + 1)

    sizes_of_probe = sizes()
    probe, answer = (permutation(v, n, rng) for v, n in zip((of_keys, of_values), sizes_of_probe, strict=True))
    width = sum(sizes_of_probe)
    place, has_probe, value_of, tokens, asked = rng.integers(length - 2 * width), False, {}, [], []
    while len(tokens) < length - width - 2 * longest:
        key_size, value_size = sizes()
        if len(tokens) >= place and not has_probe:
            key = probe
        else:
            key = permutation(of_keys, key_size, rng)
        has_probe |= key == probe
        value = value_of.get(key, answer if key == probe else permutation(of_values, value_size, rng))
        asked += [0] * len(key) + [int(key in value_of)] * len(value)
        value_of[key] = value
        tokens += [*key, *value]
    tokens += [*probe, *answer]
    asked += [0] * len(probe) + [1] * len(answer)
    missing = length + 1 - len(tokens)
    return [symbols] * missing + tokens, [0] * missing + asked


def same_distribution(ours, theirs):
    """Whether two samples of small whole numbers may be of one distribution (chi-squared)."""
    both = np.concatenate([ours, theirs])
    edges = np.unique(np.quantile(both, np.linspace(0, 1, 9)))
    edges[-1] += 1
    if len(edges) < 3:
        return np.array_equal(np.unique(ours), np.unique(theirs))
    table = np.array([np.histogram(each, edges)[0] for each in (ours, theirs)])
    return stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 1e-3


RECALL_CASES = [
    InContextRecallConfig(),
    InContextRecallConfig(vocabulary=7, sequence_length=12),
    NoisyRecallConfig(),
    NoisyRecallConfig(vocabulary=9, noise_vocabulary=3, sequence_length=12, noise=0.6),
]


@pytest.mark.parametrize("config", RECALL_CASES)
def test_recall_asks_for_the_value_of_each_key_seen_before(examples_of, config):
    content = config.vocabulary - getattr(config, "noise_vocabulary", 0)
    for stream, weights in streams(examples_of, config):
        value_of, asked = {}, []
        for place in range(0, config.sequence_length, 2):
            key, value = stream[place : place + 2]
            if key >= content:
                assert value >= content
                asked += [0.0, 0.0]
                continue
            assert 0 <= key < content // 2 <= value < content
            asked += [float(key in value_of), 0.0]
            assert value_of.setdefault(key, value) == value
        assert weights == asked


@pytest.mark.parametrize("config", RECALL_CASES)
def test_recall_is_distributed_as_in_mads_code(examples_of, config):
    rng = np.random.default_rng(3)
    theirs = [recall_sequence(config, rng) for _ in range(NUMBER)]
    theirs = [one for one in theirs if one[1][-1:] == [1]]  # there may be noise alone
    inputs, _, weights = examples_of(config, NUMBER)
    inputs, weights = (each[weights.any(axis=1)] for each in (inputs, weights))
    tokens, asked = (np.array(each) for each in zip(*theirs, strict=True))
    content = config.vocabulary - getattr(config, "noise_vocabulary", 0)
    for figure in (
        lambda tokens, asked: asked.sum(axis=1),
        lambda tokens, asked: (tokens >= content).sum(axis=1),
        lambda tokens, asked: np.array([len(set(row[::2])) for row in tokens.tolist()]),
        lambda tokens, asked: np.array([row.index(row[-2]) for row in tokens.tolist()]),  # where the last key stood
    ):
        assert same_distribution(figure(inputs, weights), figure(tokens, asked))
    firsts = [np.bincount(each[:, :2].reshape(-1), minlength=config.vocabulary) for each in (inputs, tokens)]
    firsts = np.array(firsts)
    assert stats.chi2_contingency(firsts[:, firsts.sum(axis=0) > 0]).pvalue > 1e-3


SLOW = pytest.mark.slow
FUZZY = [FuzzyRecallConfig(), FuzzyRecallConfig(vocabulary=6, motif=2, sequence_length=24)]


@pytest.mark.parametrize(
    ("config", "training"),
    [
        pytest.param(FUZZY[0], True, marks=SLOW),
        pytest.param(FUZZY[0], False, marks=SLOW),
        (FUZZY[1], True),
        (FUZZY[1], False),
    ],
)
def test_fuzzy_recall_is_distributed_as_in_mads_code(config, training):
    """Motifs that begin alike, of one size in an evaluation; padding; where the asked pair stands; what counts."""
    rng, pad = np.random.default_rng(4), config.vocabulary - 1
    sample = [fuzzy_sequence(config, rng, training=training) for _ in range(NUMBER)]
    tokens, asked = (np.array(each) for each in zip(*sample, strict=True))
    draw = jax.jit(jax.vmap(make_task(config).draw_of_split, in_axes=(0, None)))
    inputs, targets, weights = map(np.asarray, draw(jax.random.split(jax.random.key(5), NUMBER), jnp.asarray(training)))
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    ours = np.concatenate([inputs, targets[:, -1:]], axis=1)
    assert not (weights * (targets == pad)).any()

    def last_key(row):
        """The tokens of the last key: those of keys before the last value."""
        ends = [place for place, token in enumerate(row) if token < pad // 2]
        size = next(n for n in itertools.count(1) if row[ends[-1] - n] >= pad // 2)
        return tuple(row[ends[-1] - size + 1 : ends[-1] + 1])

    def first_place_of_last_key(row):
        key = last_key(row)
        return next(n for n in range(len(row)) if tuple(row[n : n + len(key)]) == key)

    for figure in (
        lambda tokens, asked: (tokens == pad).sum(axis=1),
        lambda tokens, asked: asked.sum(axis=1),
        lambda tokens, asked: np.array([len(last_key(row)) for row in tokens.tolist()]),
        lambda tokens, asked: np.array([first_place_of_last_key(row) for row in tokens.tolist()]),
        lambda tokens, asked: (tokens < pad // 2).sum(axis=1),
    ):
        assert same_distribution(figure(ours, weights), figure(tokens, asked))
    counts = [np.bincount(each.reshape(-1), minlength=config.vocabulary) for each in (ours, tokens)]
    np.testing.assert_allclose(counts[0] / counts[0].sum(), counts[1] / counts[1].sum(), atol=0.008)


def test_fuzzy_keys_are_permutations_that_may_begin_alike(examples_of):
    firsts = {}
    inputs, _, _ = examples_of(FuzzyRecallConfig(), NUMBER)
    for row in inputs.tolist():
        content = [token for token in row if token != 15]
        assert len(set(content[:3])) == 3 and max(content[:3]) < 7 <= content[3] < 15
        firsts.setdefault(content[0], set()).add(tuple(content[:3]))
    assert {len(each) for each in firsts.values()} == {30}  # 6 x 5 of each first token


@pytest.mark.parametrize(
    "kind", [InContextRecallConfig, *(pytest.param(k, marks=SLOW) for k in (NoisyRecallConfig, FuzzyRecallConfig))]
)
def test_training_predicts_every_next_token_and_an_evaluation_what_was_asked(kind):
    task, index = make_task(kind()), jnp.arange(4, dtype=jnp.int32)
    prepare = jax.jit(task.prepare, static_argnames="training")
    for first, training in ((0, True), (0, False), (2**30, False)):
        stored = {"index": first + index, "example_weight": jnp.ones(4)}
        weights = np.asarray(prepare(stored, jax.random.split(jax.random.key(0), 4), training=training)["loss_weights"])
        last = 128 if kind is FuzzyRecallConfig else 127
        assert (weights[:, :last].all() and not weights[:, last:].any()) == training
        assert training or 4 < weights.sum(axis=1).mean() < 100


@pytest.mark.parametrize("kind", MAD)
def test_runs_of_other_sequences_are_not_opened(kind):
    assert make_task(kind()).metadata == {"definition": 2}
    make_task(kind(), {"definition": 2})
    with pytest.raises(
        ConfigError, match=r"this run learned other sequences than this version draws: .*; train it aga"
    ):
        make_task(kind(), {})


# ------------------------------------------------------------------------------- MAD: copy, squeeze, remember


@pytest.mark.parametrize(
    "config",
    [SelectiveCopyConfig(), SelectiveCopyConfig(vocabulary=4, sequence_length=11, copies=3)],
)
def test_selective_copy_repeats_the_contents_in_order(examples_of, config):
    blank, ask = config.vocabulary - 2, config.vocabulary - 1
    reading = config.sequence_length - config.copies
    for inputs, targets, weights in sequences(examples_of, config):
        contents = [token for token in inputs[: reading - 1] if token != blank]
        assert len(contents) == config.copies and max(contents) < blank
        assert inputs[reading - 2] != blank  # no blank follows the last of them
        assert inputs[reading - 1 :] == [ask] + [blank] * config.copies
        assert targets[reading:] == contents
        assert weights == [0.0] * reading + [1.0] * config.copies


def test_blanks_fall_before_each_content_alike(examples_of):
    inputs, targets, _ = examples_of(SelectiveCopyConfig(), NUMBER)
    places = np.array([np.flatnonzero(row) for row in (inputs[:, :239] != 14)])
    blanks = np.diff(places, axis=1, prepend=-1) - 1
    rng = np.random.default_rng(6)
    expected = rng.multinomial(223, [1 / 16] * 16, NUMBER)
    for column in (0, 7, 15):
        assert same_distribution(blanks[:, column], expected[:, column])
    assert stats.chisquare(np.bincount(targets[:, 240:].reshape(-1), minlength=14)).pvalue > 1e-3


@pytest.mark.parametrize("config", [CompressionConfig(), CompressionConfig(vocabulary=3, sequence_length=12)])
def test_compression_asks_for_every_token(examples_of, config):
    for inputs, targets, weights in sequences(examples_of, config):
        assert inputs[-1] == config.vocabulary - 1 and config.vocabulary - 1 not in inputs[:-1]
        assert targets == inputs and weights == [1.0] * config.sequence_length
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
    assert len(set(value_of.values())) == len(value_of)


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
