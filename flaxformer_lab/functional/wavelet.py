"""Multiwavelets and attention on them (Gupta et al. 2021; Zhou et al. 2022, FEDformer-w).

A series has `order` coefficients for each token and channel: [batch, tokens, channels, order]. A level halves the
tokens: it maps each pair of them to scaling coefficients, which go on, and to wavelet coefficients, which stay. A
number of tokens that is not a power of two is filled up with tokens from the beginning.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxformer_lab.functional import linear
from flaxformer_lab.functional.frequency import (
    complex_product,
    fourier,
    inverse_fourier,
    multiply_modes,
    num_modes,
)
from flaxformer_lab.functional.products import matmul

Coefficients = Float[Array, "batch tokens channels order"]
Half = Float[Array, "batch tokens//2 channels order"]
Kernel = tuple[Float[Array, "features features modes"], Float[Array, "features features modes"]]  # real, imaginary


def multiwavelet_filters(order: int) -> Float[np.ndarray, "2*{order} 2*{order}"]:
    """An orthogonal matrix from a pair of tokens to `order` scaling and `order` wavelet coefficients.

    Scaling functions are Legendre polynomials on [0, 1] (Alpert 1993); the wavelets are those of their left halves'
    Gram-Schmidt orthogonalisation, in the order of their degrees, as in the code of both papers.
    """
    nodes, masses = np.polynomial.legendre.leggauss(2 * order)
    nodes, masses = (nodes + 1) / 2, masses / 2

    def scaling(x: Float[np.ndarray, " points"]) -> Float[np.ndarray, "order points"]:
        return np.stack([np.polynomial.Legendre.basis(i, (0, 1))(x) * np.sqrt(2 * i + 1) for i in range(order)])

    halves = [scaling((nodes + half) / 2) * masses @ scaling(nodes).T / np.sqrt(2) for half in (0, 1)]
    basis, triangle = np.linalg.qr(np.vstack([np.hstack(halves), np.eye(order, 2 * order)]).T)
    return (basis * np.sign(np.diag(triangle))).T


def decompose(x: Coefficients, filters: Float[np.ndarray, "both both"]) -> tuple[Half, Half]:
    """(scaling, wavelet) coefficients of half as many tokens."""
    pairs = jnp.concatenate([x[:, ::2], x[:, 1::2]], axis=-1)
    both = matmul(pairs, jnp.asarray(filters.T, x.dtype))
    return tuple(jnp.split(both, 2, axis=-1))


def reconstruct(
    scaling: Coefficients, wavelet: Coefficients, filters: Float[np.ndarray, "both both"]
) -> Float[Array, "batch 2*tokens channels order"]:
    """The inverse of `decompose`: twice as many tokens."""
    pairs = matmul(jnp.concatenate([scaling, wavelet], axis=-1), jnp.asarray(filters, scaling.dtype))
    batch, tokens, channels, both = pairs.shape
    pairs = pairs.reshape(batch, tokens, channels, 2, both // 2)
    return jnp.moveaxis(pairs, 3, 2).reshape(batch, 2 * tokens, channels, both // 2)


def multiwavelet_transform(
    x: Coefficients,
    filters: Float[np.ndarray, "both both"],
    kernels: tuple[Kernel, Kernel, Kernel],
    coarsest: tuple[Float[Array, "order order"], Float[Array, " order"] | None],
) -> Coefficients:
    """A linear map of a series on each level of its multiwavelets (Gupta et al. 2021, section 3.2; FEB-w).

    kernels: A and B make a level's wavelet coefficients of its wavelet and its scaling ones, C makes scaling ones of
    its wavelet ones. coarsest: the matrix and the bias on the last level's scaling coefficients.
    """
    a, b, c = kernels
    tokens, levels, x = x.shape[1], int(math.log2(x.shape[1])), _fill_up(x)
    kept = []
    for _ in range(levels):
        x, wavelet = decompose(x, filters)
        kept.append((_convolve(wavelet, c), _convolve(wavelet, a) + _convolve(x, b)))
    matrix, bias = coarsest
    x = linear.add_bias(linear.matmul(x, matrix), bias)
    for scaling, wavelet in reversed(kept):
        x = reconstruct(x + scaling, wavelet, filters)
    return x[:, :tokens]


def multiwavelet_cross_attention(
    query: Coefficients, key: Coefficients, filters: Float[np.ndarray, "both both"], *, modes: int, scale: float
) -> Coefficients:
    """tanh(Q K^T) K on the lowest modes of each level's coefficients (FEA-w), times `scale`.

    query and key have as many tokens. As in the authors' code the values are unused.
    """

    def attend(query: Coefficients, key: Coefficients) -> Coefficients:
        return _attend_modes(query, key, modes) * scale

    tokens, levels = query.shape[1], int(math.log2(query.shape[1]))
    query, key = _fill_up(query), _fill_up(key)
    kept = []
    for _ in range(levels):
        (query, query_wavelet), (key, key_wavelet) = decompose(query, filters), decompose(key, filters)
        of_wavelets = attend(query_wavelet, key_wavelet)
        kept.append((of_wavelets, of_wavelets + attend(query, key)))
    x = attend(query, key)
    for scaling, wavelet in reversed(kept):
        x = reconstruct(x + scaling, wavelet, filters)
    return x[:, :tokens]


def _fill_up(x: Coefficients) -> Float[Array, "batch _ channels order"]:
    """As many tokens as the next power of two, the first ones again at the end."""
    tokens = x.shape[1]
    return jnp.concatenate([x, x[:, : 2 ** math.ceil(math.log2(tokens)) - tokens]], axis=1)


def _convolve(x: Coefficients, kernel: Kernel) -> Coefficients:
    """The lowest Fourier modes of all channels and orders together, each times a complex matrix."""
    batch, tokens = x.shape[:2]
    modes = jnp.arange(min(kernel[0].shape[-1], tokens // 2 + 1))
    spectrum = fourier(x.reshape(batch, tokens, 1, -1), modes)
    result = multiply_modes(spectrum, *(part[None, ..., : len(modes)] for part in kernel))
    return inverse_fourier(result, modes, tokens).reshape(x.shape).astype(x.dtype)


def _attend_modes(query: Coefficients, key: Coefficients, modes: int) -> Coefficients:
    tokens = query.shape[1]
    # A single token has no mode in the authors' code, so it gives 0.
    lowest: Int[Array, " modes"] = jnp.arange(num_modes(modes, tokens))
    if tokens == 1:
        return jnp.zeros_like(query)
    q, k = fourier(query, lowest), fourier(key, lowest)
    weights = jnp.tanh(complex_product("bcom,bcon->bomn", q, k))
    result = complex_product("bomn,bcon->bcom", weights, k)
    return inverse_fourier(result, lowest, tokens).astype(query.dtype)
