"""How a block puts its parts together, by hand from the parts themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.modules.block import Block
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.rngs import AbstractRngs

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 8)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.fixture
def make(draw_module):
    """Makes a block with drawn parameters."""

    def make(**model):
        tree = {"width": 8, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}}
        config = parse_config({"model": tree | model}).model
        return draw_module(lambda: Block(config, tokens=4, rngs=AbstractRngs())).module

    return make


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("ffn", [True, False])
def test_norms_and_skip_connections(make, placement, attention, ffn):
    block = make(norm={"placement": placement}, skip={"attention": attention, "ffn": ffn})
    x = X
    for part, norm, skip in ((block.attention, block.attention_norm, attention), (block.ffn, block.ffn_norm, ffn)):
        if placement == "pre":
            x = part(norm(x)) + (x if skip else 0)
        else:
            x = norm(part(x) + (x if skip else 0))
    np.testing.assert_allclose(block(X), x, rtol=1e-5, atol=1e-5)


def test_without_norms(make):
    block = make(norm={"kind": "off"})
    y = X + block.attention(X)
    np.testing.assert_allclose(block(X), y + block.ffn(y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("off", "kept"), [("attention", "ffn"), ("ffn", "attention")])
def test_a_part_that_is_off_is_gone_with_its_norm(make, off, kept):
    block = make(**{off: {"kind": "off"}})
    assert set(nnx.to_pure_dict(nnx.state(block))) == {kept, f"{kept}_norm"}
    expected = X + getattr(block, kept)(getattr(block, f"{kept}_norm")(X))
    np.testing.assert_allclose(block(X), expected, rtol=1e-5, atol=1e-5)


def test_dropout_needs_keys_and_a_rate(make):
    block, without = make(dropout=0.5), make(dropout=0.0)
    plain = np.asarray(without(X))
    np.testing.assert_array_equal(block(X), plain)
    np.testing.assert_array_equal(without(X, keys=KEYS), plain)
    assert np.any(block(X, keys=KEYS) != plain)


def test_dropout_follows_each_examples_key_however_the_batch_is_split(make):
    block = make(dropout=0.5)
    whole = np.asarray(block(X, keys=KEYS))
    np.testing.assert_allclose(block(X[1:3], keys=KEYS[1:3]), whole[1:3], rtol=1e-5, atol=1e-5)
    others = jax.random.split(jax.random.key(1), 4)
    changed = np.any(block(X, keys=others) != whole, axis=(1, 2))
    assert changed.all()


@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_dropout_acts_on_what_a_part_adds_and_not_on_the_stream(make, part):
    other = {"attention": "ffn", "ffn": "attention"}[part]
    block = make(dropout=0.5, **{other: {"kind": "off"}})
    added = np.asarray(block(X) - X)
    kept = np.asarray(block(X, keys=KEYS) - X)
    dropped = np.isclose(kept, 0, atol=1e-6)
    assert 0.3 < dropped.mean() < 0.7
    np.testing.assert_allclose(kept[~dropped], 2 * added[~dropped], rtol=1e-3, atol=1e-5)


def test_attention_and_ffn_drop_different_features(make):
    """With both parts made the constant 1, the drops of each can be read off its own copy."""
    block = make(dropout=0.5, norm={"kind": "off"}, skip={"attention": False, "ffn": True})
    block.attention = lambda x, **_: jnp.ones_like(x)
    block.ffn = lambda x: 10 * jnp.ones_like(x)
    y = np.asarray(block(X, keys=KEYS))
    of_attention, of_ffn = (y % 20) > 1, y >= 20
    assert 0.3 < of_attention.mean() < 0.7
    assert 0.3 < of_ffn.mean() < 0.7
    assert np.any(of_attention != of_ffn)


def test_the_residual_stream_is_tapped(make):
    intermediates = Intermediates()
    output = make()(X, intermediates=intermediates)
    assert [name for name in intermediates.values if "." not in name] == ["input", "after_attention", "output"]
    np.testing.assert_array_equal(intermediates.values["output"], output)


# -------------------------------------------------------------------------------------- attention to another sequence

MEMORY = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 8)), jnp.float32)
MEMORY_VALID = jnp.arange(6)[None] < jnp.array([[6], [3], [1], [6]])


@pytest.fixture
def make_crossing(draw_module):
    """Makes a block that attends to another sequence."""

    def make(**model):
        tree = {"width": 8, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}}
        config = parse_config({"model": tree | model}).model
        return draw_module(lambda: Block(config, tokens=4, cross_attends=True, rngs=AbstractRngs()))

    return make


def test_cross_attention_is_the_formula(make_crossing):
    """softmax(q k^T / sqrt(d)) v with q of the block's own tokens, k and v of the memory, in float64."""
    drawn = make_crossing(norm={"kind": "off"}, attention={"num_heads": 2, "kind": "softmax"})
    attention, p = drawn.module.cross_attention, drawn.exact
    x, memory = np.asarray(X, np.float64), np.asarray(MEMORY, np.float64)
    query = x @ p["cross_attention.query_projection.kernel"] + p["cross_attention.query_projection.bias"]
    both = memory @ p["cross_attention.projection.kernel"] + p["cross_attention.projection.bias"]
    mixed = np.zeros_like(x)
    for head in range(2):
        q = query[..., 4 * head : 4 * head + 4]
        k, v = both[..., 8 * head : 8 * head + 4], both[..., 8 * head + 4 : 8 * head + 8]
        weights = np.exp(q @ np.swapaxes(k, 1, 2) / 2) * np.asarray(MEMORY_VALID)[:, None]
        mixed[..., 4 * head : 4 * head + 4] = weights / weights.sum(-1, keepdims=True) @ v
    expected = mixed @ p["cross_attention.output.kernel"] + p["cross_attention.output.bias"]
    found = attention(X, memory=MEMORY, valid=MEMORY_VALID)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "linear"])
def test_what_is_padding_in_the_memory_is_not_seen(make_crossing, kind):
    drawn = make_crossing(attention={"num_heads": 2, "kind": kind})
    options = {"memory_valid": MEMORY_VALID}
    changed = jnp.where(MEMORY_VALID[:, :, None], MEMORY, 100.0)
    result = drawn(X, memory=MEMORY, **options)
    np.testing.assert_array_equal(result, drawn(X, memory=changed, **options))
    assert np.abs(result - drawn(X, memory=MEMORY)).max() > 1e-3


@pytest.mark.parametrize("kind", ["mean", "static", "lightning", "channel"])
def test_kinds_that_see_one_sequence_alone_refuse_another(make_crossing, kind):
    with pytest.raises(ConfigError, match=f"attention.kind={kind} cannot attend to another sequence; choose"):
        make_crossing(attention={"num_heads": 2, "kind": kind})
