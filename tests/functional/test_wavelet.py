"""Multiwavelets: what makes them wavelets, and attention on them against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import wavelet

ORDER, CHANNELS, MODES = 3, 2, 2
GENERATOR = np.random.default_rng(0)
FILTERS = wavelet.multiwavelet_filters(ORDER)


def test_of_order_one_they_are_haars():
    np.testing.assert_allclose(wavelet.multiwavelet_filters(1) * np.sqrt(2), [[1, 1], [1, -1]], atol=1e-12)


@pytest.mark.parametrize("order", [2, 3, 8])
def test_wavelets_are_orthonormal_and_blind_to_polynomials(order):
    filters = wavelet.multiwavelet_filters(order)
    np.testing.assert_allclose(filters @ filters.T, np.eye(2 * order), atol=1e-10)
    nodes, masses = np.polynomial.legendre.leggauss(2 * order)
    nodes, masses = (nodes + 1) / 2, masses / 2
    legendre = [np.polynomial.Legendre.basis(i, (0, 1)) * np.sqrt(2 * i + 1) for i in range(order)]
    for degree in range(order):
        halves = [[np.sum(((nodes + half) / 2) ** degree * f(nodes) * masses) for f in legendre] for half in (0, 1)]
        both = filters @ np.concatenate(halves)
        np.testing.assert_allclose(both[order:], 0, atol=1e-10)
        assert np.abs(both[:order]).max() > 0.1


def convolve(x, kernel):
    """[tokens, channels, order] by the lowest modes of NumPy's FFT."""
    tokens = len(x)
    spectrum = np.fft.rfft(x.reshape(tokens, -1), axis=0)
    result = np.zeros(spectrum.shape, complex)
    for mode in range(min(kernel.shape[-1], tokens // 2 + 1)):
        result[mode] = spectrum[mode] @ kernel[:, :, mode]
    return np.fft.irfft(result, n=tokens, axis=0).reshape(x.shape)


def attend(query, key, modes):
    tokens = len(query)
    result = np.zeros((tokens // 2 + 1, *query.shape[1:]), complex)
    count = min(modes, tokens // 2)
    for order in range(query.shape[-1]):
        q, k = (np.fft.rfft(x[..., order], axis=0)[:count] for x in (query, key))
        result[:count, :, order] = np.tanh(q @ k.T) @ k
    return np.fft.irfft(result, n=tokens, axis=0)


def pairs(x):
    both = np.concatenate([x[::2], x[1::2]], axis=-1) @ FILTERS.T
    return both[..., :ORDER], both[..., ORDER:]


def unpair(scaling, detail):
    both = np.concatenate([scaling, detail], axis=-1) @ FILTERS
    out = np.zeros((2 * len(both), *both.shape[1:-1], ORDER))
    out[::2], out[1::2] = both[..., :ORDER], both[..., ORDER:]
    return out


def transform(x, levels, level_map, coarsest):
    """Recursively: a level's (scaling, wavelet) additions, and the next level."""
    if not levels:
        return coarsest(x)
    scaling, detail = pairs(x)
    more_scaling, new_detail = level_map(scaling, detail)
    return unpair(transform(scaling, levels - 1, level_map, coarsest) + more_scaling, new_detail)


def test_a_linear_map_on_every_level():
    features = CHANNELS * ORDER
    a, b, c = (sum(u * GENERATOR.normal(size=(features, features, 3)) for u in (1, 1j)) for _ in range(3))
    matrix, bias = GENERATOR.normal(size=(ORDER, ORDER)), GENERATOR.normal(size=ORDER)
    x = GENERATOR.normal(size=(1, 8, CHANNELS, ORDER))
    single = lambda array: jnp.asarray(array, jnp.float32)  # noqa: E731
    kernels = tuple((single(kernel.real), single(kernel.imag)) for kernel in (a, b, c))
    run = jax.jit(lambda x: wavelet.multiwavelet_transform(x, FILTERS, kernels, (single(matrix), single(bias))))
    # Seven tokens are filled up with the first, and have a level less.
    for tokens, levels in ((8, 3), (7, 2)):
        filled = np.concatenate([x[0, :tokens], x[0, : 8 - tokens]])
        maps = lambda s, d: (convolve(d, c), convolve(d, a) + convolve(s, b)), lambda s: s @ matrix + bias
        expected = transform(filled, levels, *maps)[:tokens]
        np.testing.assert_allclose(run(single(x[:, :tokens]))[0], expected, atol=2e-4)


def test_cross_attention_on_every_level():
    query, key = 0.3 * GENERATOR.normal(size=(2, 8, CHANNELS, ORDER))

    def recurse(q, k):
        if len(q) == 1:
            return np.zeros_like(q)
        (q, q_detail), (k, k_detail) = pairs(q), pairs(k)
        of_details = attend(q_detail, k_detail, MODES)
        return unpair(recurse(q, k) + of_details, of_details + attend(q, k, MODES))

    run = jax.jit(lambda q, k: wavelet.multiwavelet_cross_attention(q, k, FILTERS, modes=MODES, scale=0.5))
    ours = run(*(jnp.asarray(x[None], jnp.float32) for x in (query, key)))
    np.testing.assert_allclose(ours[0], 0.5 * recurse(query, key), atol=1e-5)
