"""How fields meet, against loops over pairs and heads in float64."""

import itertools

import jax.numpy as jnp
import numpy as np

from flaxformer_lab.functional.fields import interacting_layer, products_with_others

X = np.random.default_rng(0).normal(size=(2, 4, 6))


def test_the_sum_of_the_products_is_that_over_pairs_of_fields():
    pairs = itertools.combinations(range(4), 2)
    wanted = sum(np.sum(X[:, i] * X[:, j], axis=1) for i, j in pairs)
    found = products_with_others(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(np.sum(found, axis=(1, 2)), wanted, rtol=1e-5)


def test_an_interacting_layer_is_a_loop_over_heads_and_fields():
    kernels = np.random.default_rng(1).normal(size=(4, 6, 6))
    query, key, value, residual = (X @ kernel for kernel in kernels)
    wanted = X @ kernels[3]
    for head in (slice(0, 3), slice(3, 6)):
        for row in range(2):
            for field in range(4):
                scores = np.array([query[row, field, head] @ key[row, other, head] for other in range(4)])
                weights = np.exp(scores) / np.exp(scores).sum()
                wanted[row, field, head] += weights @ value[row, :, head]
    found = interacting_layer(*(jnp.asarray(each, jnp.float32) for each in (X, *kernels)), 2)
    np.testing.assert_allclose(found, np.maximum(wanted, 0), rtol=1e-4, atol=1e-5)


def test_scores_of_fields_are_float32_under_bfloat16():
    """300 and 300.5 are one number in bfloat16, whose weights would be equal."""
    x = jnp.array([[[1.0, 0.0], [1.0, 1.0]]], jnp.bfloat16)
    query, value = jnp.diag(jnp.array([300.0, 0.5])), jnp.diag(jnp.array([0.0, 1.0]))
    found = interacting_layer(x, query, jnp.eye(2), value, jnp.zeros((2, 2)), 1)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found[0, 1].astype(jnp.float32), [0, 1 / (1 + np.exp(-0.5))], rtol=5e-3)
