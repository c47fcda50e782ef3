"""Token by token against the whole sequence at once: the same logits at every position, and the same texts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models import decoding
from flaxformer_lab.models.decoding import Decoder
from flaxformer_lab.models.network import Network, functionalize
from flaxformer_lab.modules.embedding import TokenEmbedding
from flaxformer_lab.parsing import override

TOKENS, SYMBOLS = 9, 7
INPUTS = np.random.default_rng(0).integers(0, SYMBOLS, (2, TOKENS)).astype(np.int32)
LENGTHS = np.array([2, 5])

BASE = {"width": 8, "depth": 1, "causal": True, "attention.num_heads": 4, "ffn.expansion": 1.0}
CASES = {
    "softmax": {"depth": 2},
    "softmax, sinusoidal, no norm": {"position": "sinusoidal", "norm.kind": "off"},
    "softmax, rotary, shared heads, window": {
        "position": "rotary",
        "attention.num_kv_heads": 2,
        "attention.window": 3,
        "norm.placement": "post",
    },
    "linear": {"attention.kind": "linear", "attention.num_kv_heads": 1},
    "linear, rotary": {"attention.kind": "linear", "position": "rotary"},
    "lightning": {"depth": 2, "attention.kind": "lightning", "attention.slopes": "flash_linear_attention"},
    "lightning, rotary, norm and gate": {
        "attention.kind": "lightning",
        "attention.activation": "silu",
        "attention.norm": "srmsnorm",
        "attention.gate": True,
        "attention.num_kv_heads": 2,
        "position": "rotary",
    },
    "mean": {"attention.kind": "mean"},
    "mean, window": {"attention.kind": "mean", "attention.window": 4, "attention.num_kv_heads": 2},
    "static": {"attention.kind": "static", "position": "off"},
    "random": {"attention.kind": "random", "position": "off"},
    "static, window": {"attention.kind": "static", "attention.window": 4},
    "no attention": {"attention.kind": "off"},
}
WITHOUT_CACHE = {
    "mlp": {"depth": 1},
    "factorization_machine": {},
    "lstm": {"depth": 1},
    "gru": {"depth": 2},
    "cnn_1d": {"depth": 1, "causal": True},
}


@functools.cache
def build(name, draw):
    """The network of a case with drawn parameters: (network, params)."""
    tree = {}
    knobs = BASE | CASES[name] if name in CASES else {"name": name, "width": 8, **WITHOUT_CACHE[name]}
    for key, value in knobs.items():
        tree = override(tree, key, value)
    config = parse_config({"model": tree}).model

    def network(rngs):
        embedding = TokenEmbedding(SYMBOLS, 8, dtype="float32", rngs=rngs)
        return Network(config, embedding=embedding, grid=(TOKENS,), outputs=SYMBOLS, rngs=rngs)

    pure = functionalize(network)
    return pure, draw(pure.shapes[0])


@functools.cache
def whole(name, draw):
    """The compiled forward pass of a case over two whole sequences."""
    network, params = build(name, draw)
    apply = jax.jit(lambda *arguments: network.apply(*arguments)[0])
    return lambda inputs: np.asarray(apply(params, {}, jnp.asarray(inputs)))


@functools.cache
def decoder(name, draw, temperature=0.0):
    """The decoder of a case, the same one each time, so that its programs are compiled once for a number of texts."""
    return Decoder(*build(name, draw), {}, context=TOKENS, temperature=temperature)


# Others of the same kind, or tests/test_parts.py, read each of these token by token too.
SLOW = ("softmax, sinusoidal, no norm", "linear", "mean", "static", "random", "no attention")


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in (*CASES, *WITHOUT_CACHE)]
)
def test_every_position_has_the_logits_of_the_whole_sequence(draw, name):
    """Two texts of unequal length, each continued at its own place to the end of what was trained on."""
    network, params = build(name, draw)
    expected = whole(name, draw)(INPUTS)
    padded = np.where(np.arange(TOKENS)[None] < LENGTHS[:, None], INPUTS, 0)
    logits, cache = jax.jit(network.prefill)(params, {}, jnp.asarray(padded), jnp.asarray(LENGTHS))
    step = jax.jit(network.decode)
    for number in range(TOKENS - LENGTHS.min() + 1):
        place = LENGTHS + number
        there = place <= TOKENS
        found = np.asarray(logits)[there]
        np.testing.assert_allclose(
            found, expected[np.arange(2), np.minimum(place, TOKENS) - 1][there], rtol=1e-4, atol=1e-4
        )
        symbols = INPUTS[np.arange(2), np.minimum(place, TOKENS - 1)]
        logits, cache = step(params, {}, jnp.asarray(symbols), cache)


def test_a_cache_is_no_larger_than_it_must_be(draw):
    """Past tokens, a window of them, or a state; two texts of four heads of two features, unless heads are shared."""

    def shapes(name, tokens=TOKENS):
        network, params = build(name, draw)
        inputs = jnp.asarray(INPUTS[:, :tokens])
        _, cache = jax.eval_shape(network.prefill, params, {}, inputs, jnp.asarray(LENGTHS))
        return {leaf.shape for leaf in jax.tree.leaves(cache["blocks"])}

    assert shapes("softmax") == shapes("softmax", 5) == shapes("static") == {(8, TOKENS, 2)}
    assert shapes("softmax, rotary, shared heads, window") == {(4, 3, 2)}
    assert shapes("mean, window") == {(4, 4, 2)}
    assert shapes("linear") == {(2, 4, 2, 2), (2, 4, 2)}
    assert shapes("lightning") == {(2, 4, 2, 2)}
    assert shapes("mean") == {(2, 1, 4, 2)}
    assert shapes("no attention") == set()


# ------------------------------------------------------------------------------------------------ whole texts


def greedy(name, draw, text, length):
    """The most likely symbol, again and again, by the whole forward pass: over at most TOKENS symbols, and where these
    are all used, over the last half of them."""
    context, written = list(text[-TOKENS:]), []
    while len(written) < length:
        if len(context) > TOKENS:
            context = context[-(TOKENS // 2) :]
        padded = np.zeros((2, TOKENS), np.int32)
        padded[0, : len(context)] = context
        written.append(int(np.argmax(whole(name, draw)(padded)[0, len(context) - 1])))
        context.append(written[-1])
    return written


def whole_texts(decoder, prompts, length, seed=0):
    """The pieces put together: [texts, length]."""
    return np.stack([np.concatenate(pieces) for pieces in zip(*decoder.write(prompts, length, seed), strict=True)])


def texts(name, draw, prompts, length, temperature=0.0, seed=0):
    return whole_texts(decoder(name, draw, temperature), prompts, length, seed)


@pytest.mark.parametrize(
    "name",
    [
        "softmax",
        "softmax, rotary, shared heads, window",
        pytest.param("lightning", marks=pytest.mark.slow),
        pytest.param("static", marks=pytest.mark.slow),
        "gru",
    ],
)
def test_greedy_texts_are_those_of_the_whole_forward_pass(draw, name):
    """Also past the context, which each text reaches at another time."""
    prompts = [INPUTS[0, :3], INPUTS[1], INPUTS[0, :1]]
    found = texts(name, draw, prompts, 23)
    assert found.shape == (3, 23)
    for text, prompt in zip(found, prompts, strict=True):
        assert text.tolist() == greedy(name, draw, prompt, 23)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("softmax", {1: 2, 3: 4, 6: 8, 9: 9}),
        ("mean, window", {3: 4, 6: 8}),  # shorter and longer than the window
        ("static", {1: 2, 6: 8}),
        ("linear", {3: 4}),
        ("mlp", {3: 4}),
    ],
)
def test_short_texts_are_read_without_padding_to_the_whole_context(draw, name, lengths, monkeypatch):
    monkeypatch.setattr(decoding, "SHORTEST", 2)
    read = []
    network, params = build(name, draw)
    counting = dataclasses.replace(
        network, prefill=lambda *rest, **room: (read.append(rest[2].shape[1]), network.prefill(*rest, **room))[1]
    )
    decoder = Decoder(counting, params, {}, context=TOKENS, temperature=0.0)
    for length, padded in lengths.items():
        found = whole_texts(decoder, [INPUTS[0, :length]], 3)
        assert found[0].tolist() == greedy(name, draw, INPUTS[0, :length], 3)
        assert padded in read


def test_draws_follow_the_seed_and_the_place_and_no_other_text(draw):
    options = {"length": 14, "temperature": 1.5}
    both = texts("softmax", draw, [INPUTS[0, :3], INPUTS[1]], seed=4, **options)
    alone = texts("softmax", draw, [INPUTS[0, :3]], seed=4, **options)
    np.testing.assert_array_equal(alone[0], both[0])
    again = texts("softmax", draw, [INPUTS[0, :3]] * 2, seed=4, **options)
    assert np.any(again[0] != again[1])
    assert np.any(texts("softmax", draw, [INPUTS[0, :3]], seed=5, **options) != alone)


def test_draws_have_the_distribution_of_the_logits(draw):
    logits = whole("softmax", draw)(INPUTS)[0, -1]
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum()
    network, params = build("softmax", draw)
    decoder = Decoder(network, params, {}, context=TOKENS, temperature=2.0, batch_size=4000)
    found = whole_texts(decoder, [INPUTS[0]] * 4000, 1)[:, 0]
    shares = np.bincount(found, minlength=SYMBOLS) / len(found)
    np.testing.assert_allclose(shares, expected, atol=0.04)


@pytest.mark.parametrize("name", ["softmax", "mean, window", "static"])
def test_waiting_texts_take_the_rows_of_finished_ones(draw, name, monkeypatch):
    """Seven texts of all lengths in three rows, with a cache that grows: each text is the one that is written alone."""
    monkeypatch.setattr(decoding, "FEWEST_SLOTS", 2)
    network, params = build(name, draw)
    prompts = [INPUTS[row, :length] for row, length in ((0, 1), (1, 9), (0, 4), (1, 2), (1, 7), (0, 9), (0, 3))]
    several = Decoder(network, params, {}, context=TOKENS, temperature=0.0, batch_size=3)
    found = whole_texts(several, prompts, 14)
    for text, prompt in zip(found, prompts, strict=True):
        assert text.tolist() == greedy(name, draw, prompt, 14)


def test_draws_do_not_depend_on_the_number_of_rows(draw):
    network, params = build("softmax", draw)
    prompts = [INPUTS[0, :3], INPUTS[1], INPUTS[0, :6]]
    one = Decoder(network, params, {}, context=TOKENS, temperature=1.5, batch_size=1)
    np.testing.assert_array_equal(whole_texts(one, prompts, 14, 4), texts("softmax", draw, prompts, 14, 1.5, 4))


def test_the_next_stride_is_asked_for_before_the_last_is_read(draw, monkeypatch):
    read, asked = [], []
    pieces = decoding._pieces
    monkeypatch.setattr(decoding, "_pieces", lambda *rest: (read.append(len(asked)), pieces(*rest))[1])
    waiting = decoder("softmax", draw)
    go_on = waiting._go_on
    monkeypatch.setitem(waiting.__dict__, "_go_on", lambda *rest: (asked.append(0), go_on(*rest))[1])
    list(waiting.write([INPUTS[0, :3]], 20))
    assert len(read) == len(asked)
    assert read == [*range(2, len(asked) + 1), len(asked)]


def test_a_cache_has_room_for_what_is_known_alone(draw, monkeypatch):
    """The slots of the first block while a text grows from 3 to 9 symbols, in strides of 6."""
    monkeypatch.setattr(decoding, "FEWEST_SLOTS", 3)
    network, params = build("softmax", draw)
    slots = []

    def decode(params, model_state, symbols, cache):
        slots.append(cache["blocks"][0][0].shape[1])
        return network.decode(params, model_state, symbols, cache)

    seen = Decoder(dataclasses.replace(network, decode=decode), params, {}, context=TOKENS, temperature=0.0)
    seen.__dict__["_variables"] = params, {}
    monkeypatch.setattr(seen, "_stride", 2)
    found = whole_texts(seen, [INPUTS[0, :1]], 12)
    assert found[0].tolist() == greedy("softmax", draw, INPUTS[0, :1], 12)
    assert slots == [3, 6, 9]


def test_programs_are_compiled_once(draw):
    network, params = build("softmax", draw)
    traced = []

    def counted(name):
        return lambda *inputs, **room: (traced.append(name), getattr(network, name)(*inputs, **room))[1]

    counting = dataclasses.replace(network, prefill=counted("prefill"), decode=counted("decode"))
    decoder = Decoder(counting, params, {}, context=TOKENS, temperature=0.0)
    for length in (3, 8, 23):
        list(decoder.write([INPUTS[0, :length]], length))
        assert sorted(traced) == ["decode", "decode", "prefill", "prefill"]  # once to see the types of the parameters


@pytest.mark.parametrize("prompts", [[], [INPUTS[0], INPUTS[1, :0]]])
def test_nothing_to_go_on_from_is_refused(draw, prompts):
    with pytest.raises(ValueError, match="at least one symbol to continue"):
        texts("softmax", draw, prompts, 3)


def test_a_network_that_is_not_causal_is_refused():
    config = parse_config({"model": {"width": 8, "depth": 1, "causal": False}}).model

    def build(rngs):
        embedding = TokenEmbedding(SYMBOLS, 8, dtype="float32", rngs=rngs)
        return Network(config, embedding=embedding, grid=(TOKENS,), outputs=SYMBOLS, rngs=rngs)

    network = functionalize(build)
    with pytest.raises(
        ConfigError, match=r"model\.causal=false lets a token see later ones, .* set model\.causal=true"
    ):
        jax.eval_shape(network.prefill, network.shapes[0], {}, jnp.asarray(INPUTS), jnp.asarray(LENGTHS))


def test_a_symbol_outside_the_vocabulary_is_refused(draw):
    for symbol in (-1, SYMBOLS):
        with pytest.raises(ConfigError, match=f"symbol {symbol} is not one of this network's vocabulary of {SYMBOLS}"):
            texts("softmax", draw, [INPUTS[0], np.array([0, symbol])], 3)
