"""Neighbourhoods times a kernel against SciPy's correlations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate, correlate2d

from flaxformer_lab.functional import convolution
from flaxformer_lab.functional.convolution import (
    convolution_1d,
    convolution_2d,
    depthwise_2d,
    neighbourhood_1d,
    neighbourhood_2d,
)

GENERATOR = np.random.default_rng(0)
SEQUENCES = GENERATOR.normal(size=(2, 6, 3))
IMAGES = GENERATOR.normal(size=(2, 5, 4, 3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_a_kernel_over_neighbourhoods_is_a_correlation(size, causal):
    """The full correlation has size - 1 more places in front; a centred window starts size // 2 before its token."""
    kernel = GENERATOR.normal(size=(size, 3, 2))
    windows = jax.jit(lambda x: neighbourhood_1d(x, size, causal=causal))(jnp.asarray(SEQUENCES, jnp.float32))
    assert windows.shape == (2, 6, size * 3)
    before = size - 1 if causal else size // 2
    for sequence, result in zip(SEQUENCES, np.asarray(windows) @ kernel.reshape(-1, 2), strict=True):
        for out in range(2):
            full = sum(correlate(sequence[:, c], kernel[:, c, out], mode="full") for c in range(3))
            start = size - 1 - before
            np.testing.assert_allclose(result[:, out], full[start : start + 6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("causal", "places"), [(True, [-4, -2, 0]), (False, [-2, 0, 2])])
def test_a_dilated_neighbourhood_leaves_tokens_out(causal, places):
    windows = neighbourhood_1d(jnp.asarray(SEQUENCES, jnp.float32), 3, causal=causal, dilation=2)
    padded = np.pad(SEQUENCES, ((0, 0), (4, 4), (0, 0)))
    expected = np.concatenate([padded[:, 4 + place : 10 + place] for place in places], axis=-1)
    np.testing.assert_array_equal(windows, expected.astype(np.float32))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_kernel_over_square_neighbourhoods_is_a_correlation(size):
    kernel = GENERATOR.normal(size=(size, size, 3, 2))
    windows = jax.jit(lambda x: neighbourhood_2d(x, size))(jnp.asarray(IMAGES, jnp.float32))
    assert windows.shape == (2, 5, 4, size * size * 3)
    start = size - 1 - size // 2
    for image, result in zip(IMAGES, np.asarray(windows) @ kernel.reshape(-1, 2), strict=True):
        for out in range(2):
            full = sum(correlate2d(image[:, :, c], kernel[:, :, c, out], mode="full") for c in range(3))
            expected = full[start : start + 5, start : start + 4]
            np.testing.assert_allclose(result[:, :, out], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_convolutions_in_one_operation_are_products_of_windows(size):
    line = jnp.asarray(GENERATOR.normal(size=(size * 3, 2)), jnp.float32)
    square = jnp.asarray(GENERATOR.normal(size=(size * size * 3, 2)), jnp.float32)
    sequences, images = jnp.asarray(SEQUENCES, jnp.float32), jnp.asarray(IMAGES, jnp.float32)

    def pairs(sequences, images):
        for options in ({"causal": True}, {"causal": False, "dilation": 2}, {"causal": False, "circular": True}):
            yield convolution_1d(sequences, line, size, **options), neighbourhood_1d(sequences, size, **options) @ line
        for stride in (1, 2):
            yield convolution_2d(images, square, size, stride), neighbourhood_2d(images, size, stride) @ square

    for convolved, product in jax.jit(lambda *x: [*pairs(*x)])(sequences, images):
        np.testing.assert_allclose(convolved, product, rtol=1e-5, atol=1e-5)


def test_windows_by_hand():
    @jax.jit
    def windows(x):
        sizes = ((3, False), (3, True), (2, False))
        lines = [neighbourhood_1d(x, size, causal=causal)[0] for size, causal in sizes]
        return *lines, neighbourhood_2d(x.reshape(1, 2, 2, 1), 3)[0, 1, 0]

    centred, causal, even, square = (each.tolist() for each in windows(jnp.asarray([[[1.0], [2.0], [3.0], [4.0]]])))
    assert centred == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0]]
    assert causal == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert even == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert square == [0, 1, 2, 0, 3, 4, 0, 0, 0]


def test_a_stride_leaves_rows_and_columns_out():
    images = jnp.asarray(IMAGES, jnp.float32)
    whole, strided = neighbourhood_2d(images, 3), neighbourhood_2d(images, 3, 2)
    np.testing.assert_array_equal(strided, np.asarray(whole)[:, ::2, ::2])


@pytest.mark.parametrize("platform", ["cpu", "any"])
def test_the_gradient_of_a_depthwise_kernel_is_a_float32_sum(platform, monkeypatch):
    """A sum of 8,192 ones in bfloat16 is 256, and 8,191 is none of its numbers."""
    monkeypatch.setattr(convolution, "only_on_cpu", lambda: platform == "cpu")
    x = jnp.ones((1, 8191, 1, 2), jnp.bfloat16)
    total = lambda kernel: jnp.sum(depthwise_2d(x, kernel).astype(jnp.float32))  # noqa: E731
    gradient = jax.jit(jax.grad(total))(jnp.ones((1, 1, 2)))
    assert gradient.dtype == jnp.float32 and depthwise_2d(x, jnp.ones((1, 1, 2))).dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, 8191)


@pytest.mark.parametrize("platform", ["cpu", "any"])
def test_gradients_of_a_depthwise_convolution_under_bfloat16_are_those_of_float32(platform, monkeypatch):
    monkeypatch.setattr(convolution, "only_on_cpu", lambda: platform == "cpu")
    x, towards = (jnp.asarray(GENERATOR.normal(size=(2, 5, 4, 3)), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(GENERATOR.normal(size=(3, 3, 3)), jnp.bfloat16).astype(jnp.float32)

    @jax.jit
    def gradients(x, towards):
        return jax.vjp(depthwise_2d, x, kernel)[1](towards)

    wide = gradients(x.astype(jnp.float32), towards.astype(jnp.float32))
    for ours, exact, tolerance in zip(gradients(x, towards), wide, (2e-2, 1e-5), strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=tolerance, atol=tolerance)
