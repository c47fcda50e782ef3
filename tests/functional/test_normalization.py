"""Normalisation and its written-out gradient against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from flaxformer_lab.functional.normalization import (
    batch_norm,
    batch_statistics,
    layer_norm,
    rms_norm,
    standardised,
)

GENERATOR = np.random.default_rng(0)
X, SCALE, BIAS = GENERATOR.normal(size=(2, 4, 8)) + 0.5, GENERATOR.normal(size=8), GENERATOR.normal(size=8)
EPSILON = 1e-3

centring = pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])


def plain(x, centred, numpy=np):
    """The textbook formula."""
    mean = numpy.mean(x, axis=-1, keepdims=True) if centred else 0 * x
    return (x - mean) / numpy.sqrt(numpy.mean((x - mean) ** 2, axis=-1, keepdims=True) + EPSILON)


def jitted(norm):
    return jax.jit(norm, static_argnames="epsilon")


def as_float32(*values):
    return [jnp.asarray(value, jnp.float32) for value in values]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_layer_norm(offset):
    x, scale, bias = as_float32(X + offset, SCALE, BIAS)
    expected = plain(np.asarray(x, np.float64), True) * SCALE + BIAS
    np.testing.assert_allclose(jitted(layer_norm)(x, scale, bias, EPSILON), expected, rtol=1e-4, atol=1e-4)


def test_layer_norm_without_bias():
    x, scale = as_float32(X, SCALE)
    result = jitted(layer_norm)(x, scale, None, EPSILON)
    np.testing.assert_allclose(result, plain(X, True) * SCALE, rtol=1e-5, atol=1e-5)


def test_rms_norm():
    x, scale = as_float32(X, SCALE)
    np.testing.assert_allclose(jitted(rms_norm)(x, scale, EPSILON), plain(X, False) * SCALE, rtol=1e-5, atol=1e-5)


def test_both_are_odd():
    x, scale = as_float32(X, SCALE)
    norms = (lambda x: rms_norm(x, scale, EPSILON), lambda x: layer_norm(x, scale, None, EPSILON))
    for norm in map(jax.jit, norms):
        np.testing.assert_array_equal(norm(-x), -np.asarray(norm(x)))


def test_epsilon_keeps_a_constant_token_finite():
    x, ones = jnp.full((2, 4, 8), 3.0), jnp.ones(8)
    assert not np.asarray(jitted(layer_norm)(x, ones, None, EPSILON)).any()
    assert not np.asarray(jitted(rms_norm)(jnp.zeros((2, 4, 8)), ones, EPSILON)).any()


def test_half_precision_is_normalised_in_float32():
    x = jnp.asarray(X + 30, jnp.bfloat16)
    result = jitted(layer_norm)(x, jnp.ones(8), jnp.zeros(8), EPSILON)
    assert result.dtype == jnp.bfloat16
    expected = plain(np.asarray(x, np.float64), True)
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=1e-2, atol=1e-2)


@centring
def test_gradients_of_first_and_second_order_agree_with_finite_differences(centred):
    with jax.enable_x64(True):
        towards = jnp.asarray(BIAS)[None, None]
        run = jax.jit(lambda x: standardised(jnp.asarray(x), EPSILON, centred) * towards)
        check_grads(run, (X,), order=2, modes=["rev"])


@centring
def test_gradient_agrees_with_autodiff_of_the_formula(centred):
    towards = jnp.asarray(BIAS * SCALE)[None, None]
    with jax.enable_x64(True):
        expected = jax.jit(jax.grad(lambda x: jnp.sum(towards * plain(x, centred, jnp) ** 2)))(jnp.asarray(X))
    x, towards = as_float32(X, towards)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(towards * standardised(x, EPSILON, centred) ** 2)))(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@centring
def test_forward_over_reverse_agrees_with_autodiff_of_the_formula(centred):
    """The product with the Hessian of a nonlinear function, as second-order optimisers and sharpness measures ask."""
    with jax.enable_x64(True):
        x, tangent = jnp.asarray(X), jnp.asarray(GENERATOR.normal(size=X.shape))

        def hessian_product(normalised, x):
            return jax.jvp(jax.grad(lambda x: jnp.sum(jnp.sin(normalised(x)))), (x,), (tangent,))[1]

        ways = (lambda x: plain(x, centred, jnp), lambda x: standardised(x, EPSILON, centred))
        expected, result = jax.jit(lambda x: [hessian_product(way, x) for way in ways])(x)
        assert np.max(np.abs(expected)) > 0.1
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)


def test_batch_statistics_are_those_of_the_valid_tokens():
    valid = np.arange(4)[None] < np.array([[4], [1]])
    seen = X[valid]
    mean, variance, count = batch_statistics(*as_float32(X), jnp.asarray(valid))
    np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, seen.var(0), rtol=1e-5)
    assert count == 5
    expected = (X - seen.mean(0)) / np.sqrt(seen.var(0) + EPSILON) * SCALE + BIAS
    found = batch_norm(*as_float32(X), mean, variance, *as_float32(SCALE, BIAS), EPSILON)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_statistics_of_several_devices_are_those_of_the_whole_batch():
    def over(x):
        return batch_statistics(x, axis_name="devices")

    parts = jax.pmap(over, axis_name="devices", devices=jax.devices()[:2])(as_float32(X)[0])
    for found, expected in zip(parts, (X.mean((0, 1)), X.var((0, 1)), 8), strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)
        np.testing.assert_array_equal(found[0], found[1])


@centring
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_row_of_zeros_has_the_gradient_of_the_formula(centred, dtype):
    norm = lambda x: (layer_norm if centred else rms_norm)(x, jnp.ones(8), *[None] * centred, 1e-6)  # noqa: E731
    output, pull = jax.vjp(norm, jnp.zeros((1, 8), dtype))
    assert not np.asarray(output).any()
    towards = jnp.asarray(BIAS[None] / 1000, dtype)
    exact = np.asarray(towards, np.float64)
    expected = (exact - centred * exact.mean()) * 1000
    np.testing.assert_allclose(np.asarray(*pull(towards), np.float64), expected, rtol=1e-2, atol=1e-2)
