import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.task_config import LanguageModellingConfig
from flaxformer_lab.tasks import language_modelling, make_task
from flaxformer_lab.tasks.language_modelling import UNKNOWN

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FACTS = {"num_symbols": 27, "symbols": UNKNOWN + LETTERS}


def make(metadata=FACTS, **changes):
    return make_task(LanguageModellingConfig(**changes), metadata)


@pytest.fixture(scope="module")
def characters():
    """Characters of the speeches, next token."""
    return make_task(LanguageModellingConfig(sequence_length=32))


def prepared(task, symbols, *, key=0, weights=None, weight=None, training=True):
    examples = {
        "symbols": symbols,
        "loss_weights": np.ones((len(symbols), task.units[1]), np.float32) if weights is None else weights,
        "example_weight": np.ones(len(symbols), np.float32) if weight is None else weight,
    }
    prepare = jax.jit(lambda examples, keys: task.prepare(examples, keys, training=training))
    return prepare(examples, jax.random.split(jax.random.key(key), len(symbols)))


def shapes(task):
    params, _ = jax.eval_shape(task.network(TransformerConfig(width=8, depth=1)).init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in leaf_paths(params).items()}


# ------------------------------------------------------------------------------------------------- symbols


def test_a_text_of_known_characters_survives_the_round_trip(characters):
    text = "".join(record["text"] for record in open_split("lab_speeches", "train").records())[:20_000]
    symbols = characters.encode(text)
    assert symbols.dtype == np.uint8 and symbols.min() > 0 and len(symbols) == len(text)
    assert characters.decode(symbols) == text


@pytest.mark.parametrize("text", ["", "plain", "naïve — “quoted”", "\N{GRINNING FACE} 日本\n\t\0"])
def test_any_text_survives_the_round_trip_as_bytes(text):
    task = make({"num_symbols": 256}, tokenizer="bytes")
    symbols = task.encode(text)
    assert bytes(symbols.tolist()) == text.encode("utf-8")
    assert task.decode(symbols) == text


def test_half_a_character_of_bytes_can_still_be_shown():
    task = make({"num_symbols": 256}, tokenizer="bytes")
    assert task.decode(task.encode("aé")[:-1]) == "a" + UNKNOWN


@pytest.mark.parametrize("strange", ["A", "é", UNKNOWN, "\N{GRINNING FACE}", "\0", "\U0010ffff"])
def test_a_character_that_training_has_not_seen_becomes_the_unknown_symbol(strange):
    task = make()
    assert task.encode(f"a{strange}b").tolist() == [1, 0, 2]
    assert task.decode(task.encode(f"a{strange}b")) == f"a{UNKNOWN}b"


def test_more_than_256_characters_have_numbers_of_their_own():
    many = "".join(chr(0x4E00 + number) for number in range(300))
    task = make({"num_symbols": 301, "symbols": UNKNOWN + many})
    assert task.encode(many).tolist() == list(range(1, 301))
    assert task.decode(task.encode(many)) == many


def test_the_facts_are_the_characters_of_the_training_text(characters):
    metadata = characters.metadata
    seen = set().union(*(record["text"] for record in open_split("lab_speeches", "train").records())) | {"\n"}
    assert set(metadata["symbols"]) == seen | {UNKNOWN} and metadata["symbols"][0] == UNKNOWN
    assert metadata["num_symbols"] == len(metadata["symbols"]) == len(set(metadata["symbols"]))
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
def test_a_task_made_from_its_facts_alone_is_the_same(monkeypatch, tokenizer):
    config = LanguageModellingConfig(tokenizer=tokenizer, sequence_length=16)
    seen = make_task(config)
    monkeypatch.setattr(language_modelling, "open_split", lambda *_: pytest.fail("the data was opened"))
    unseen = make_task(config, json.loads(json.dumps(seen.metadata)))
    assert shapes(unseen) == shapes(seen)
    assert unseen.input_spec(5) == seen.input_spec(5) == jax.ShapeDtypeStruct((5, 16), jnp.int32)
    np.testing.assert_array_equal(unseen.encode("We the people"), seen.encode("We the people"))


# ------------------------------------------------------------------------------------------------ examples


@pytest.mark.parametrize(("objective", "lookahead"), [("next_token", 1), ("masked", 0)])
@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
def test_evaluation_predicts_every_symbol_of_the_split_once(characters, objective, lookahead, tokenizer):
    metadata = characters.metadata if tokenizer == "characters" else {"num_symbols": 256}
    task = make(metadata, objective=objective, tokenizer=tokenizer, sequence_length=100)
    text = "\n".join(record["text"] for record in open_split("lab_speeches", "test").records())
    length = len(text) if tokenizer == "characters" else len(text.encode())
    examples = task.examples("test")
    batch = examples.read(examples.evaluation_indices(np.arange(examples.number)))
    assert batch["loss_weights"].sum() == length - lookahead
    stream = batch["symbols"][:, lookahead:][batch["loss_weights"] == 1]
    np.testing.assert_array_equal(stream, task.encode(text)[lookahead:])


def test_the_target_is_the_next_symbol(characters):
    examples = characters.examples("validation")
    stored = examples.read(examples.evaluation_indices(np.arange(4)))
    batch = prepared(characters, stored["symbols"], weights=stored["loss_weights"])
    text = "\n".join(record["text"] for record in open_split("lab_speeches", "validation").records())
    stream = characters.encode(text)
    np.testing.assert_array_equal(np.ravel(batch["inputs"]), stream[:128])
    np.testing.assert_array_equal(np.ravel(batch["targets"]), stream[1:129])
    assert batch["inputs"].dtype == batch["targets"].dtype == jnp.int32


def test_padding_of_a_window_and_of_a_batch_has_no_weight():
    for objective, lookahead in (("next_token", 1), ("masked", 0)):
        task = make(objective=objective, sequence_length=4, mask_rate=0.999)
        weights = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
        weight = np.array([1, 0], np.float32)
        batch = prepared(task, np.ones((2, 4 + lookahead), np.uint8), weights=weights, weight=weight)
        np.testing.assert_array_equal(batch["loss_weights"], [[1, 1, 1, 0], [0, 0, 0, 0]])


# ------------------------------------------------------------------------------------------------- masking


def masked(mask_rate=0.15, key=0, rows=400, tokens=100):
    """The masked objective on random symbols: what went in, and what came out."""
    task = make(objective="masked", sequence_length=tokens, mask_rate=mask_rate)
    symbols = np.random.default_rng(0).integers(0, 27, (rows, tokens), np.uint8)
    return symbols, jax.device_get(prepared(task, symbols, key=key))


def assert_share(count, number, rate):
    """The count is within 5 standard deviations of what the rate promises."""
    assert abs(count - number * rate) < 5 * math.sqrt(number * rate * (1 - rate))


@pytest.mark.parametrize("mask_rate", [0.15, 0.5])
def test_the_share_of_chosen_tokens_is_the_mask_rate(mask_rate):
    symbols, batch = masked(mask_rate)
    assert set(np.unique(batch["loss_weights"])) == {0, 1}
    assert_share(batch["loss_weights"].sum(), symbols.size, mask_rate)
    # And no window is left out, nor any place of a window.
    assert (batch["loss_weights"].sum(axis=1) > 0).all() and (batch["loss_weights"].sum(axis=0) > 0).all()


def test_of_the_chosen_80_percent_are_masked_10_percent_drawn_and_10_percent_kept():
    symbols, batch = masked(0.5)
    chosen = batch["loss_weights"] == 1
    number, inputs = chosen.sum(), batch["inputs"]
    is_mask, same = inputs == 27, inputs == symbols
    assert_share((chosen & is_mask).sum(), number, 0.8)
    # One draw in 27 is the symbol that was there already.
    assert_share((chosen & ~is_mask & ~same).sum(), number, 0.1 * 26 / 27)
    assert_share((chosen & same).sum(), number, 0.1 + 0.1 / 27)
    drawn = inputs[chosen & ~is_mask & ~same]
    counts = np.bincount(drawn, minlength=27)
    assert len(counts) == 27  # every symbol can be drawn, and nothing else
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 54.1  # 99.9% of chi squared, 26 degrees of freedom


def test_masking_leaves_the_targets_and_the_other_tokens_alone():
    symbols, batch = masked(0.5)
    np.testing.assert_array_equal(batch["targets"], symbols)
    others = batch["loss_weights"] == 0
    np.testing.assert_array_equal(batch["inputs"][others], symbols[others])


def test_masks_follow_from_the_keys():
    _, batch = masked(key=0)
    _, other = masked(key=1)
    assert not np.array_equal(other["loss_weights"], batch["loss_weights"])
    differing = [np.array_equal(batch["loss_weights"][0], row) for row in batch["loss_weights"][1:]]
    assert not any(differing)


def test_only_chosen_tokens_are_judged():
    _, batch = masked(0.5, rows=3, tokens=10)
    batch = jax.tree.map(jnp.asarray, batch)
    task = make(objective="masked", sequence_length=10, mask_rate=0.5)
    logits = jax.random.normal(jax.random.key(0), (3, 10, 27))
    slope = jax.grad(lambda logits: task.loss_and_metrics(logits, batch)["loss"][0])(logits)
    reached = np.abs(slope).sum(axis=-1) > 0
    np.testing.assert_array_equal(reached, batch["loss_weights"] == 1)


def test_the_mask_is_read_but_never_predicted():
    both, next_token = shapes(make(objective="masked")), shapes(make(objective="next_token"))
    assert both["embedding.table"] == (28, 8) and next_token["embedding.table"] == (27, 8)
    assert both["head.kernel"] == next_token["head.kernel"] == (8, 27)


# ---------------------------------------------------------------------------------------------- the rest


def test_uniform_logits_lose_the_log_of_the_number_of_symbols():
    task = make(sequence_length=4)
    batch = prepared(task, np.arange(10, dtype=np.uint8).reshape(2, 5), weight=np.array([1, 0], np.float32))
    total, weight = task.loss_and_metrics(jnp.zeros((2, 4, 27)), batch)["loss"]
    assert weight == 4
    np.testing.assert_allclose(total / weight, math.log(27), rtol=1e-6)


def test_the_units_are_tokens():
    assert make(sequence_length=48).units == ("tokens", 48)


@pytest.mark.parametrize("objective", ["next_token", "masked"])
def test_a_sequence_longer_than_a_split_is_refused(objective):
    task = make(objective=objective, sequence_length=10_000_000)
    with pytest.raises(ConfigError, match=r"task\.sequence_length=10000000 is more than the \d+ symbols in test"):
        task.examples("test")


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
def test_a_data_set_without_text_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"task\.dataset=lab_digits has no text.*it has image, label"):
        make_task(LanguageModellingConfig(dataset="lab_digits", tokenizer=tokenizer)).examples("train")
