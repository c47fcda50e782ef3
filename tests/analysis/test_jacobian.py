"""The energy of the Jacobian, against finite differences of the same function in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.analysis.jacobian import _sampled, mixing_energy
from flaxformer_lab.config import parse_config
from flaxformer_lab.models.transformer import Transformer
from flaxformer_lab.modules.rngs import Rngs

PER_DIMENSION = {
    "attention.projection": "diagonal",
    "attention.output": "diagonal",
    "attention.num_heads": 8,
    "attention.head_dim": 1,
    "norm.kind": "off",
    "ffn.kind": "off",
}


def function_of(drawn):
    return lambda x: drawn.apply(drawn.params, x)


def numpy_transformer(p, x):
    """One block of two heads with its norms before each part, and tanh in the FFN: [batch, 4, 8] to the same."""

    def norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * p[f"{name}.scale"] + p[f"{name}.bias"]
        )

    def dense(x, name):
        return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]

    x = x + p["position"]
    heads = dense(norm(x, "blocks.0.attention_norm"), "blocks.0.attention.projection").reshape(*x.shape[:2], 2, 3, 4)
    query, key, value = np.moveaxis(heads, (3, 2), (0, 2))
    weights = np.exp(query @ np.swapaxes(key, 2, 3) / 2)
    mixed = weights / weights.sum(axis=-1, keepdims=True) @ value
    x = x + dense(np.moveaxis(mixed, 1, 2).reshape(x.shape), "blocks.0.attention.output")
    hidden = np.tanh(dense(norm(x, "blocks.0.ffn_norm"), "blocks.0.ffn.up"))
    return norm(x + dense(hidden, "blocks.0.ffn.down"), "norm")


def finite_differences(function, x):
    """J[b, t, c, s, d] by central differences."""
    batch, tokens, width = x.shape
    steps = 1e-5 * np.eye(tokens * width).reshape(-1, 1, tokens, width)
    columns = [(function(x + step) - function(x - step)) / 2e-5 for step in steps]
    return np.moveaxis(np.stack(columns), 0, -1).reshape(batch, tokens, width, tokens, width)


def shares(energy):
    """The off-diagonal share of the mean over examples."""
    return 1 - np.trace(energy.mean(axis=0)) / energy.mean(axis=0).sum()


def test_the_exact_energy_is_that_of_finite_differences(transformer, stream):
    drawn, x = transformer({"ffn.activation": "tanh"}), stream.astype(np.float64)
    np.testing.assert_allclose(numpy_transformer(drawn.exact, x), drawn(stream), rtol=1e-4, atol=1e-5)
    dense = finite_differences(lambda x: numpy_transformer(drawn.exact, x), x)
    features, tokens = mixing_energy(function_of(drawn), jnp.asarray(stream))
    by_feature = np.einsum("btcsd->bcd", dense**2)
    by_token = np.einsum("btcsd->bts", dense**2)
    np.testing.assert_allclose(features.matrix, by_feature.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(tokens.matrix, by_token.mean(axis=0), rtol=1e-3)
    assert features.cross.value == pytest.approx(shares(by_feature), rel=1e-4)
    assert tokens.cross.value == pytest.approx(shares(by_token), rel=1e-4)
    assert 0 < features.cross.standard_error < 0.1


def test_rows_are_outputs_and_columns_inputs():
    first = lambda x: x.at[:, :, 1].set(x[:, :, 0])  # noqa: E731 output 1 is input 0
    features, _ = mixing_energy(first, jnp.ones((2, 3, 2)))
    np.testing.assert_array_equal(features.matrix, [[3, 0], [3, 0]])
    assert features.cross.value == 0.5


@pytest.mark.parametrize("num_random_vectors", [None, 64])
def test_features_that_never_meet_have_exactly_no_cross_energy(transformer, stream, num_random_vectors):
    features, tokens = mixing_energy(
        function_of(transformer(PER_DIMENSION)), jnp.asarray(stream), num_random_vectors=num_random_vectors
    )
    assert features.cross == (0.0, 0.0) and tokens.cross.value > 0.005
    mixing, _ = mixing_energy(function_of(transformer(PER_DIMENSION | {"norm.kind": "layernorm"})), jnp.asarray(stream))
    assert mixing.cross.value > 0.01


@pytest.mark.parametrize("num_random_vectors", [None, 64])
def test_without_attention_tokens_have_exactly_no_cross_energy(transformer, stream, num_random_vectors):
    off = transformer({"attention.kind": "off"})
    features, tokens = mixing_energy(function_of(off), jnp.asarray(stream), num_random_vectors=num_random_vectors)
    assert tokens.cross == (0.0, 0.0) and features.cross.value > 0.1


def test_sampled_rows_agree_with_all_of_them_within_an_honest_error(transformer):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 4, 8)), jnp.float32)
    function = function_of(transformer())
    for which, exact in enumerate(mixing_energy(function, x)):
        found = [mixing_energy(function, x, num_random_vectors=32, seed=seed)[which] for seed in range(12)]
        apart = np.array([each.cross.value for each in found]) - exact.cross.value
        errors = np.array([each.cross.standard_error for each in found])
        assert np.all(np.abs(apart) < 4 * errors) and np.all(errors < 0.1)
        # The error holds that of the examples too, so repetitions on the same ones lie no further apart than it says.
        assert np.std(apart) < 1.5 * errors.mean()
        np.testing.assert_allclose(np.mean([each.matrix for each in found], axis=0), exact.matrix, rtol=0.5, atol=1e-2)


def test_the_sampled_error_is_right_where_only_random_vectors_cause_it():
    """One linear map for all examples: what differs between them is which rows were drawn, and the signs."""
    weight = np.random.default_rng(0).normal(size=(3, 4, 3, 4)).astype(np.float32)
    function = lambda x: jnp.einsum("tcsd,bsd->btc", jnp.asarray(weight), x)  # noqa: E731
    x = jnp.zeros((32, 3, 4))
    exact = mixing_energy(function, x)[0].cross
    assert exact.standard_error < 1e-6
    found = [mixing_energy(function, x, num_random_vectors=4, seed=seed)[0].cross for seed in range(40)]
    apart = np.array([each.value for each in found]) - exact.value
    assert np.sqrt(np.mean(apart**2)) == pytest.approx(np.mean([each.standard_error for each in found]), rel=0.4)


def test_a_row_that_no_probe_looked_at_is_not_a_number(transformer):
    x = jnp.ones((1, 4, 8))
    matrix = mixing_energy(function_of(transformer()), x, num_random_vectors=2)[0].matrix
    assert 6 <= np.isnan(matrix).all(axis=1).sum() < 8
    assert np.isnan(mixing_energy(lambda x: x[:, :, :2], jnp.ones((2, 3, 4)))[0].cross.value)  # 2 outputs, 4 inputs


def test_a_wide_model_is_measured_in_far_less_memory_than_its_jacobian():
    """By the compiler's report, on shapes alone; nothing runs."""
    width, tokens = 512, 256
    config = parse_config({"model": {"width": width, "depth": 2, "attention": {"num_heads": 8}}}).model
    graph, params = nnx.split(nnx.eval_shape(lambda: Transformer(config, grid=(tokens,), rngs=Rngs(0))))

    def energies(params, x):
        return _sampled(lambda x: nnx.merge(graph, params)(x), x, 128, jax.random.key(0))

    x = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    memory = jax.jit(energies).lower(nnx.to_pure_dict(params), x).compile().memory_analysis()
    used = memory.temp_size_in_bytes + memory.output_size_in_bytes
    jacobian = 4 * (tokens * width) ** 2
    assert used < jacobian / 1000
