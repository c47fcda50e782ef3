"""Trends against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import decomposition

X = np.random.default_rng(0).normal(size=(2, 7, 3))


def moving_average(x, size):
    """As FEDformer's code pads: an even size has one more at the front."""
    after = (size - 1) // 2
    padded = np.concatenate([x[:, :1]] * (size - 1 - after) + [x] + [x[:, -1:]] * after, axis=1)
    return np.stack([padded[:, t : t + size].mean(axis=1) for t in range(x.shape[1])], axis=1)


@pytest.mark.parametrize("size", [1, 3, 4, 25])
def test_one_kernel(size):
    seasonal, trend = decomposition.decompose_series(jnp.asarray(X, jnp.float32), (size,))
    np.testing.assert_allclose(trend, moving_average(X, size), atol=1e-6)
    np.testing.assert_allclose(seasonal, X - moving_average(X, size), atol=1e-6)


def test_several_kernels_are_mixed_by_the_value_itself():
    sizes, weight, bias = (3, 6), np.array([0.5, -1.0]), np.array([0.2, 0.1])
    logits = X[..., None] * weight + bias
    mixture = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = sum(mixture[..., i] * moving_average(X, size) for i, size in enumerate(sizes))
    arrays = [jnp.asarray(x, jnp.float32) for x in (X, weight, bias)]
    run = jax.jit(lambda x, *parameters: decomposition.decompose_series(x, sizes, *parameters))
    seasonal, trend = run(*arrays)
    np.testing.assert_allclose(trend, expected, atol=1e-6)
    np.testing.assert_allclose(seasonal, X - expected, atol=1e-6)
