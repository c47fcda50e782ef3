"""Linear maps against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.linear import add_bias, diagonal, matmul, over_features, take_rows

GENERATOR = np.random.default_rng(0)
X, KERNEL, BIAS = (GENERATOR.normal(size=shape).astype(np.float32) for shape in ((2, 4, 8), (8, 5), (5,)))


@pytest.mark.parametrize("bias", [None, BIAS])
def test_dense_is_a_weighted_sum_of_all_features(bias):
    result = add_bias(matmul(jnp.asarray(X), jnp.asarray(KERNEL)), None if bias is None else jnp.asarray(bias))
    expected = np.zeros((2, 4, 5))
    for batch, token, out in np.ndindex(expected.shape):
        expected[batch, token, out] = sum(float(X[batch, token, c]) * float(KERNEL[c, out]) for c in range(8))
        expected[batch, token, out] += 0.0 if bias is None else float(bias[out])
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [None, KERNEL[:, 1]])
def test_diagonal_weighs_each_feature_alone(bias):
    result = diagonal(jnp.asarray(X), jnp.asarray(KERNEL[:, 0]), None if bias is None else jnp.asarray(bias))
    expected = np.zeros(X.shape)
    for batch, token, c in np.ndindex(X.shape):
        expected[batch, token, c] = float(X[batch, token, c]) * float(KERNEL[c, 0]) + (0 if bias is None else bias[c])
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_over_features_gives_a_vector_the_rank_of_what_it_acts_on(rank):
    vector = over_features(jnp.arange(3.0), jnp.zeros((2,) * (rank - 1) + (3,)))
    assert vector.shape == (1,) * (rank - 1) + (3,)
    assert vector.ravel().tolist() == [0, 1, 2]


def test_the_input_decides_the_precision():
    x = jnp.asarray(X, jnp.bfloat16)
    assert add_bias(matmul(x, jnp.asarray(KERNEL)), jnp.asarray(BIAS)).dtype == jnp.bfloat16
    assert take_rows(jnp.asarray(KERNEL), jnp.asarray([1, 2]), jnp.bfloat16).dtype == jnp.bfloat16
    assert diagonal(x, jnp.ones(8), jnp.ones(8)).dtype == jnp.bfloat16


def test_rows_that_a_table_does_not_have_are_nan_and_get_no_gradient():
    table, indices = jnp.asarray(KERNEL), jnp.asarray([[0, -1], [8, 7]])
    rows, pull = jax.vjp(lambda table: take_rows(table, indices, jnp.float32), table)
    np.testing.assert_array_equal(rows, [[KERNEL[0], np.full(5, np.nan)], [np.full(5, np.nan), KERNEL[7]]])
    (gradient,) = pull(jnp.ones_like(rows))
    np.testing.assert_array_equal(gradient, np.isin(np.arange(8), (0, 7))[:, None] * np.ones(5))
