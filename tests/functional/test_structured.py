"""Structured linear maps against the dense matrices that they stand for, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from flaxformer_lab.functional.structured import block_diagonal, block_matmul, fourier, hadamard, monarch
from flaxformer_lab.models.flops import count_flops

GENERATOR = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(GENERATOR.normal(size=shape), jnp.float32)


def exact(x, matrix):
    return np.asarray(x, np.float64) @ matrix


@pytest.mark.parametrize("shape", [(4, 2, 2), (4, 2, 3), (2, 4, 1), (1, 8, 8), (8, 1, 1)])
def test_a_block_maps_its_own_features(shape):
    x, kernel = draw(2, 3, 8), draw(*shape)
    dense = scipy.linalg.block_diag(*np.asarray(kernel, np.float64))
    np.testing.assert_allclose(block_diagonal(x, kernel), exact(x, dense), rtol=1e-5, atol=1e-5)


def test_parts_of_a_block_diagonal_map_stand_one_after_another():
    x, kernels = draw(2, 3, 8), draw(3, 4, 2, 2)
    one = block_diagonal(x, jnp.concatenate(list(kernels), axis=-1), 3)
    each = [exact(x, scipy.linalg.block_diag(*kernel)) for kernel in kernels]
    np.testing.assert_allclose(one, np.concatenate(each, axis=-1), rtol=1e-5, atol=1e-5)


def shuffle(rows, columns):
    """The matrix that reads a grid of features column by column."""
    return np.eye(rows * columns)[:, np.arange(rows * columns).reshape(rows, columns).T.ravel()]


@pytest.mark.parametrize(("blocks", "middle", "features_out"), [(4, 2, 8), (2, 4, 8), (2, 4, 16), (4, 1, 4), (2, 2, 4)])
def test_monarch_is_two_block_diagonal_maps_with_a_shuffle_between(blocks, middle, features_out):
    x, first = draw(2, 3, 8), draw(blocks, 8 // blocks, middle)
    second = draw(middle, blocks, features_out // middle)
    dense = scipy.linalg.block_diag(*np.asarray(first, np.float64)) @ shuffle(blocks, middle)
    dense = dense @ scipy.linalg.block_diag(*np.asarray(second, np.float64)) @ shuffle(middle, features_out // middle)
    assert (dense != 0).all()  # each input reaches each output
    np.testing.assert_allclose(monarch(x, first, second), exact(x, dense), rtol=1e-5, atol=1e-5)


def test_parts_of_a_monarch_map_stand_one_after_another():
    x, firsts, seconds = draw(2, 8), draw(3, 4, 2, 2), draw(3, 2, 4, 4)
    one = monarch(x, jnp.concatenate(list(firsts), axis=-1), jnp.concatenate(list(seconds)), 3)
    each = [monarch(x, first, second) for first, second in zip(firsts, seconds, strict=True)]
    np.testing.assert_allclose(one, np.concatenate(each, axis=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [1, 2, 8, 16])
def test_hadamard_is_orthonormal_and_that_of_sylvester(features):
    x = draw(2, 3, features)
    dense = scipy.linalg.hadamard(features) / np.sqrt(features)
    np.testing.assert_allclose(hadamard(x), exact(x, dense), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hadamard(hadamard(x)), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [1, 2, 5, 16])
def test_fourier_is_the_discrete_transform_in_real_numbers_and_its_own_inverse(features):
    x = draw(2, 3, features)
    expected = np.fft.fft(np.asarray(x, np.float64), norm="ortho")
    np.testing.assert_allclose(fourier(x), expected.real - expected.imag, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fourier(fourier(x)), x, rtol=1e-5, atol=1e-5)


def test_the_input_decides_the_precision_and_the_gradient_is_summed_in_float32():
    x = jnp.ones((8192, 4), jnp.bfloat16)
    kernel = jnp.zeros((2, 2, 3))
    assert block_diagonal(x, kernel).dtype == hadamard(x).dtype == fourier(x).dtype == jnp.bfloat16
    gradient = jax.grad(lambda kernel: jnp.sum(block_diagonal(x, kernel).astype(jnp.float32)))(kernel)
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, 8192)


def test_the_gradients_at_16_bits_are_those_at_32():
    x, kernel, cotangent = draw(5, 4, 2), draw(4, 2, 3), draw(5, 4, 3)

    def gradients(dtype):
        function = lambda x, kernel: jnp.vdot(block_matmul(x.astype(dtype), kernel).astype(jnp.float32), cotangent)  # noqa: E731
        return jax.grad(function, argnums=(0, 1))(x, kernel)

    for narrow, wide in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=0.05, atol=0.05)


def test_structure_costs_what_its_matrices_cost():
    x = draw(64)
    first, second = draw(8, 8, 8), draw(8, 8, 8)
    assert count_flops(block_diagonal, x, first) == 2 * 64 * 8
    assert count_flops(monarch, x, first, second) == 2 * 2 * 64 * 8
    assert count_flops(hadamard, x) == 2 * 64 * (8 + 8)
