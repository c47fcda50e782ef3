"""Attention in the frequency domain against NumPy's FFT and loops over modes in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import frequency

HEADS, HEAD_DIM = 2, 3
GENERATOR = np.random.default_rng(0)


def weights(modes):
    return [GENERATOR.uniform(size=(HEADS, HEAD_DIM, HEAD_DIM, modes)) for _ in range(2)]


def single(*values):
    return [jnp.asarray(x, jnp.float32) for x in values]


@pytest.mark.parametrize("tokens", [9, 10])
def test_the_block_puts_each_selected_mode_into_the_next_slot(tokens):
    x, modes = GENERATOR.normal(size=(2, tokens, HEADS, HEAD_DIM)), np.array([0, 2, 3])
    real, imaginary = weights(len(modes))
    spectrum = np.fft.rfft(x, axis=1)
    result = np.zeros(spectrum.shape, complex)
    for slot, mode in enumerate(modes):
        for b, h in np.ndindex(2, HEADS):
            result[b, slot, h] = spectrum[b, mode, h] @ (real + 1j * imaginary)[h, :, :, slot]
    run = jax.jit(frequency.fourier_block)
    ours = run(*single(x, real, imaginary), jnp.asarray(modes))
    np.testing.assert_allclose(ours, np.fft.irfft(result, n=tokens, axis=1), atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(9, 10), (10, 7)])
def test_cross_attention_multiplies_by_the_keys(queries, keys):
    query, key = GENERATOR.normal(size=(2, queries, HEADS, HEAD_DIM)), GENERATOR.normal(size=(2, keys, HEADS, HEAD_DIM))
    query_modes, key_modes = np.array([1, 2, 3]), np.array([0, 2])
    real, imaginary = weights(len(query_modes))
    q, k = (np.fft.rfft(0.3 * x, axis=1)[:, modes] for x, modes in ((query, query_modes), (key, key_modes)))
    result = np.zeros((2, queries // 2 + 1, HEADS, HEAD_DIM), complex)
    for b, h in np.ndindex(2, HEADS):
        mixed = np.tanh(q[b, :, h] @ k[b, :, h].T) @ k[b, :, h]
        for i, mode in enumerate(query_modes):
            result[b, mode, h] = mixed[i] @ (real + 1j * imaginary)[h, :, :, i]
    expected = np.fft.irfft(result / (HEADS * HEAD_DIM) ** 2, n=queries, axis=1)
    modes = jnp.asarray(query_modes), jnp.asarray(key_modes)
    ours = jax.jit(frequency.fourier_cross_attention)(*single(0.3 * query, 0.3 * key, real, imaginary), *modes)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_tanh_of_large_products_is_finite_and_so_is_its_gradient():
    query, key = single(*(100 * GENERATOR.normal(size=(1, 8, HEADS, HEAD_DIM)) for _ in range(2)))
    arguments = *single(*weights(2)), jnp.arange(2), jnp.arange(2)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(frequency.fourier_cross_attention(x, key, *arguments))))(query)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("tokens", [7, 8])
def test_all_modes_there_and_back(tokens):
    x, modes = GENERATOR.normal(size=(2, tokens, 3)), jnp.arange(tokens // 2 + 1)

    @jax.jit
    def there_and_back(x):
        spectrum = frequency.fourier(x, modes)
        return spectrum, frequency.inverse_fourier(spectrum, modes, tokens)

    spectrum, back = there_and_back(*single(x))
    np.testing.assert_allclose(spectrum, np.moveaxis(np.fft.rfft(x, axis=1), 1, -1), atol=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_modes_are_drawn_sorted_and_of_the_lower_half():
    modes = np.asarray(frequency.select_modes(jax.random.key(0), 97, 16))
    assert len(set(modes)) == 16 and (np.diff(modes) > 0).all() and modes.max() < 48 and modes.max() > 16
    assert (np.asarray(frequency.select_modes(jax.random.key(1), 97, 16)) != modes).any()
    np.testing.assert_array_equal(frequency.select_modes(jax.random.key(0), 9, 64), [0, 1, 2, 3])
    np.testing.assert_array_equal(frequency.select_modes(jax.random.key(0), 97, 3, "lowest"), [0, 1, 2])
    np.testing.assert_array_equal(frequency.select_modes(jax.random.key(0), 1, 3), [0])
