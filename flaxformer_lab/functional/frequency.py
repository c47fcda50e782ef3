"""Attention in the frequency domain, on a few Fourier modes (Zhou et al. 2022, FEDformer).

Layout: [batch, tokens, heads, head_dim]. Few modes are used, so the transforms are products with cosines and sines. A
sequence of `tokens` has the modes 0 ... tokens // 2 - 1; the last, of alternating signs, is never used.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int, Key

from flaxformer_lab.functional.products import product

Heads = Float[Array, "batch tokens heads head_dim"]
Modes = Int[Array, " modes"]
Weights = Float[Array, "heads head_dim head_dim modes"]  # the real or the imaginary parts


def num_modes(modes: int, tokens: int) -> int:
    """How many of the modes of a sequence are used; at least 1."""
    return max(1, min(modes, tokens // 2))


def select_modes(
    key: Key[Array, ""], tokens: int, modes: int, selection: Literal["random", "lowest"] = "random"
) -> Modes:
    """min(modes, tokens // 2) modes, sorted: drawn at random (section 3.2), or the lowest."""
    count = num_modes(modes, tokens)
    if selection == "lowest":
        return jnp.arange(count)
    return jnp.sort(jax.random.permutation(key, max(1, tokens // 2))[:count])


def _cosines_and_sines(modes: Modes, tokens: int) -> tuple[Float[Array, "{tokens} modes"], ...]:
    turns = (jnp.arange(tokens)[:, None] * modes[None]) % tokens  # exact integers, so that angles stay small
    angles = turns.astype(jnp.float32) * (2 * jnp.pi / tokens)
    return jnp.cos(angles), jnp.sin(angles)


def fourier(x: Float[Array, "batch tokens *rest"], modes: Modes) -> Complex[Array, "batch *rest modes"]:
    """The coefficients of some modes, as those of an FFT."""
    cosines, sines = _cosines_and_sines(modes, x.shape[1])
    real, imaginary = (product("bt...,tm->b...m", x, wave) for wave in (cosines, sines))
    return jax.lax.complex(real, -imaginary)


def inverse_fourier(
    coefficients: Complex[Array, "batch *rest modes"], modes: Modes, tokens: int
) -> Float[Array, "batch {tokens} *rest"]:
    """The real series with these coefficients at these modes and 0 at all others, as an inverse FFT gives it."""
    cosines, sines = _cosines_and_sines(modes, tokens)
    # A mode stands for its conjugate too, but for mode 0 and that of alternating signs, which have none.
    times = jnp.where((modes == 0) | (2 * modes == tokens), 1, 2) / tokens
    parts = (coefficients.real, cosines), (coefficients.imag, sines)
    real, imaginary = (product("b...m,tm->bt...", part, wave * times[None]) for part, wave in parts)
    return real - imaginary


def multiply_modes(
    x: Complex[Array, "batch heads inputs modes"],
    real: Float[Array, "heads inputs outputs modes"],
    imaginary: Float[Array, "heads inputs outputs modes"],
) -> Complex[Array, "batch heads outputs modes"]:
    """One complex matrix for each head and mode."""
    return complex_product("bhim,hiom->bhom", x, jax.lax.complex(real, imaginary))


def complex_product(indices: str, a: Complex[Array, "..."], b: Complex[Array, "..."]) -> Complex[Array, "..."]:
    """An einsum of complex arrays by one of real ones: the parts are one more axis, which is summed."""
    inputs, output = indices.split("->")
    first, second = inputs.split(",")
    rows = jnp.stack([jnp.stack([b.real, b.imag]), jnp.stack([-b.imag, b.real])])  # [of a, of the result, ...]
    parts = jnp.stack([a.real, a.imag])
    result = product(f"Y{first},YZ{second}->Z{output}", parts, rows)
    return jax.lax.complex(result[0], result[1])


def fourier_block(x: Heads, real: Weights, imaginary: Weights, modes: Modes) -> Heads:
    """Selected modes of the queries times a complex matrix each (eq. 4, FEB-f).

    The result of the i-th selected mode becomes mode i, not the mode that was selected, as in the authors' code.
    """
    result = multiply_modes(fourier(x, modes), real, imaginary)
    return inverse_fourier(result, jnp.arange(len(modes)), x.shape[1]).astype(x.dtype)


def fourier_cross_attention(
    query: Heads,
    key: Float[Array, "batch keys heads head_dim"],
    real: Weights,
    imaginary: Weights,
    query_modes: Modes,
    key_modes: Int[Array, " key_modes"],
) -> Heads:
    """tanh(Q K^T) K on selected modes, times a complex matrix each (eq. 6 and 7, FEA-f), divided by width^2.

    The authors' code multiplies by the keys where the paper has the values, which it leaves unused.
    """
    q, k = fourier(query, query_modes), fourier(key, key_modes)
    weights = jnp.tanh(complex_product("bhdm,bhdn->bhmn", q, k))
    mixed = multiply_modes(complex_product("bhmn,bhdn->bhdm", weights, k), real, imaginary)
    width = query.shape[2] * query.shape[3]
    return inverse_fourier(mixed / width**2, query_modes, query.shape[1]).astype(query.dtype)
