"""Products of two features against the double loop that the formula saves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer_lab.functional.factorization import pairwise_products

GENERATOR = np.random.default_rng(0)
X, FACTORS = GENERATOR.normal(size=(2, 3, 5)), GENERATOR.normal(size=(5, 4))


def test_pairwise_products_are_those_of_the_double_loop():
    expected = np.zeros((2, 3, 4))
    for i, j in itertools.combinations(range(5), 2):
        expected += X[..., i, None] * X[..., j, None] * FACTORS[i] * FACTORS[j]
    result = jax.jit(pairwise_products)(jnp.asarray(X, jnp.float32), jnp.asarray(FACTORS, jnp.float32))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_no_feature_is_multiplied_with_itself():
    """The Hessian of each output has zeros on its diagonal, and v_i v_j beside it."""
    function = lambda x: pairwise_products(x, jnp.asarray(FACTORS, jnp.float32))  # noqa: E731
    hessian = np.asarray(jax.jit(jax.hessian(function))(jnp.asarray(X[0, 0], jnp.float32)))
    expected = np.einsum("ir,jr->rij", FACTORS, FACTORS) * (1 - np.eye(5))
    np.testing.assert_allclose(hessian, expected, rtol=1e-4, atol=1e-5)


def test_float16_squares_are_subtracted_in_float32():
    """(x V)^2 is 90,000, beyond float16; the products of pairs are 45,000 - 4,500."""
    x, factors = np.full((1, 10), 30.0), np.ones((10, 1))
    result = pairwise_products(jnp.asarray(x, jnp.float16), jnp.asarray(factors, jnp.float32))
    assert result.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(result, np.float64), 45 * 900, rtol=1e-3)
