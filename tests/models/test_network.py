"""From raw inputs to logits, and the pure form that training sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.network import Network, _mean_of_valid, functionalize
from flaxformer_lab.modules.embedding import TokenEmbedding
from flaxformer_lab.modules.projection import Identity
from flaxformer_lab.modules.rngs import AbstractRngs, Rngs

SYMBOLS = np.array([[0, 4, 2, 2], [1, 3, 3, 0]], np.int32)
VALID = jnp.array([[True, True, True, True], [True, True, False, False]])


def builder(pooling="off", **model):
    """A network of 5 symbols, 4 tokens, 3 outputs."""
    tree = {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}}
    config = parse_config({"model": tree | model}).model

    def build(rngs):
        embedding = TokenEmbedding(5, 8, dtype=config.dtype, rngs=rngs)
        return Network(config, embedding=embedding, grid=(4,), outputs=3, pooling=pooling, rngs=rngs)

    return build


@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
@pytest.mark.parametrize("pooling", ["off", "mean", "class_token", "last"])
def test_the_parts_follow_one_another(draw_module, pooling, valid):
    drawn = draw_module(lambda: builder(pooling)(AbstractRngs()))
    module, exact = drawn.module, drawn.exact
    tokens = np.asarray(module.body(module.embedding(jnp.asarray(SYMBOLS)), valid=valid), np.float64)
    if pooling == "mean":
        weights = np.ones((2, 4)) if valid is None else np.asarray(valid, np.float64)
        tokens = (tokens * weights[:, :, None]).sum(1) / weights.sum(1, keepdims=True)
    elif pooling == "class_token":
        tokens = tokens[:, 0]
    elif pooling == "last":
        last = [3, 3] if valid is None else [np.flatnonzero(each)[-1] for each in np.asarray(valid)]
        tokens = tokens[[0, 1], last]
    expected = tokens @ exact["head.kernel"] + exact["head.bias"]
    assert expected.shape == ((2, 4, 3) if pooling == "off" else (2, 3))
    np.testing.assert_allclose(drawn(SYMBOLS, valid=valid), expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_is_given_takes_the_place_of_the_dense_one(draw_module):
    def build():
        rngs = AbstractRngs()
        head = Identity(8, 8, axes=(None, "width"), bias=False, rngs=rngs)
        embedding = TokenEmbedding(5, 8, dtype="float32", rngs=rngs)
        config = parse_config({"model": {"name": "gru", "width": 8, "depth": 1}}).model
        return Network(config, embedding=embedding, grid=(4,), outputs=8, head=head, rngs=rngs)

    drawn = draw_module(build)
    module = drawn.module
    np.testing.assert_allclose(drawn(SYMBOLS), module.body(module.embedding(jnp.asarray(SYMBOLS))), rtol=1e-6)
    assert not [path for path in drawn.exact if "head" in path]


def test_padding_does_not_reach_the_pooled_logits(draw_module):
    drawn = draw_module(lambda: builder("mean")(AbstractRngs()))
    changed = SYMBOLS.copy()
    changed[1, 3] = 2
    np.testing.assert_array_equal(drawn(changed, valid=VALID), drawn(SYMBOLS, valid=VALID))
    assert np.any(drawn(changed) != drawn(SYMBOLS))


def test_half_precision_ends_in_float32_logits(draw_module):
    exact = draw_module(lambda: builder("mean")(AbstractRngs()))(SYMBOLS)
    half = draw_module(lambda: builder("mean", dtype="bfloat16")(AbstractRngs()))
    intermediates = half.intermediates(SYMBOLS)
    assert intermediates["blocks.0.output"].dtype == intermediates["output"].dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.params))
    result = half(SYMBOLS)
    assert result.dtype == jnp.float32
    assert 0 < np.abs(result - exact).max() < 3e-2 * np.abs(exact).max()


# ------------------------------------------------------------------------------------------- the pure form

SHALLOW = {"depth": 0, "position": "off"}


@pytest.fixture(scope="module")
def pure():
    return functionalize(builder("mean", **SHALLOW))


def test_initial_parameters_are_a_function_of_the_key(pure):
    params, model_state = pure.init(jax.random.key(3))
    again, _ = pure.init(jax.random.key(3))
    other, _ = pure.init(jax.random.key(4))
    assert model_state == {}
    paths = leaf_paths(params)
    assert {path: leaf.shape for path, leaf in paths.items()} == {
        "embedding.table": (5, 8),
        "head.bias": (3,),
        "head.kernel": (8, 3),
        "body.norm.bias": (8,),
        "body.norm.scale": (8,),
    }
    for path, leaf in leaf_paths(again).items():
        np.testing.assert_array_equal(leaf, paths[path])
    drawn = {"embedding.table", "head.kernel"}
    assert {path for path, leaf in leaf_paths(other).items() if not np.array_equal(leaf, paths[path])} == drawn
    np.testing.assert_array_equal(paths["body.norm.scale"], 1)
    np.testing.assert_array_equal(paths["body.norm.bias"], 0)
    np.testing.assert_array_equal(paths["head.bias"], 0)


def test_apply_is_the_module_with_these_parameters_also_when_compiled(pure):
    module = builder("mean", **SHALLOW)(Rngs(jax.random.key(3)))
    params, _ = pure.init(jax.random.key(3))
    np.testing.assert_allclose(params["embedding"]["table"], module.embedding.table[...], rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(pure.apply)(params, {}, jnp.asarray(SYMBOLS))[0], module(jnp.asarray(SYMBOLS)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
def test_embed_and_body_are_the_parts_of_apply(draw_module, valid):
    params = draw_module(lambda: builder("mean")(AbstractRngs())).params
    network = functionalize(builder("mean"))
    vectors = network.embed(params, {}, jnp.asarray(SYMBOLS))
    np.testing.assert_array_equal(vectors, np.asarray(params["embedding"]["table"])[SYMBOLS])
    tokens = np.asarray(network.body(params, {}, vectors, valid=valid), np.float64)
    weights = np.ones((2, 4)) if valid is None else np.asarray(valid, np.float64)
    pooled = (tokens * weights[:, :, None]).sum(1) / weights.sum(1, keepdims=True)
    expected = pooled @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    result, _ = network.apply(params, {}, jnp.asarray(SYMBOLS), valid=valid)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_that_apply_is_given_matters(draw_module):
    drawn = draw_module(lambda: builder("mean")(AbstractRngs()))
    network = functionalize(builder("mean"))

    squares = lambda params: jnp.sum(network.apply(params, {}, jnp.asarray(SYMBOLS))[0] ** 2)  # noqa: E731
    total, gradient = jax.jit(jax.value_and_grad(squares))(drawn.params)
    assert float(total) == pytest.approx(float(np.sum(drawn(SYMBOLS) ** 2)), rel=1e-4)
    assert jax.tree.structure(gradient) == jax.tree.structure(drawn.params)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_intermediates_by_dotted_name(draw_module):
    drawn = draw_module(lambda: builder("mean", depth=2)(AbstractRngs()))
    network = functionalize(builder("mean", depth=2))
    values = network.intermediates(drawn.params, {}, jnp.asarray(SYMBOLS), valid=VALID)
    of_attention = [f"attention.{name}" for name in ("input", "q", "k", "v", "scores", "weights", "z", "output")]
    of_ffn = [f"ffn.{name}" for name in ("input", "preactivation", "hidden", "output")]
    of_block = ["input", *of_attention, "after_attention", *of_ffn, "output"]
    assert list(values) == ["input", *(f"blocks.{n}.{name}" for n in range(2) for name in of_block), "output"]
    last = np.asarray(values["output"], np.float64)
    pooled = np.stack([last[0].mean(0), last[1, :2].mean(0)])
    expected = pooled @ drawn.exact["head.kernel"] + drawn.exact["head.bias"]
    np.testing.assert_allclose(
        network.apply(drawn.params, {}, jnp.asarray(SYMBOLS), valid=VALID)[0], expected, rtol=1e-4, atol=1e-5
    )


# ----------------------------------------------------------------------------------------------- extreme inputs


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_mean_of_many_tokens_is_summed_in_float32(dtype):
    """700 tokens of 100: their sum is beyond float16, and bfloat16 has no 699."""
    valid = np.ones((2, 701), bool)
    valid[0, 0] = valid[1] = False
    mean = _mean_of_valid(jnp.full((2, 701, 3), 100, dtype), jnp.asarray(valid))
    assert mean.dtype == dtype
    np.testing.assert_array_equal(np.asarray(mean, np.float32), [[100] * 3, [0] * 3])


@pytest.mark.parametrize("symbol", [-1, 5])
def test_a_symbol_outside_the_vocabulary_is_refused_where_it_is_known_and_nan_where_it_is_not(pure, symbol):
    params, _ = pure.init(jax.random.key(0))
    symbols = jnp.asarray(SYMBOLS).at[0, 1].set(symbol)
    for function in (pure.apply, pure.embed):
        with pytest.raises(
            ConfigError, match=f"symbol {symbol} is not one of this network's vocabulary of 5, from 0 to 4"
        ):
            function(params, {}, symbols)
    logits, _ = jax.jit(pure.apply)(params, {}, symbols)
    assert np.all(np.isnan(logits[0])) and np.all(np.isfinite(logits[1]))
    of_the_other = lambda params, symbols: pure.apply(params, {}, symbols)[0][1].sum()  # noqa: E731
    gradient = jax.jit(jax.grad(of_the_other))(params, symbols)
    assert np.all(np.isfinite(gradient["embedding"]["table"]))
