"""Rank and scale of token vectors: whether tokens become alike, and features' scales unequal, with depth."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TokenVectors = Float[Array, "batch tokens features"]


@jax.jit
def rank_residual(x: TokenVectors) -> Float[Array, " batch"]:
    """||X - 1 mean(X)^T|| / ||X|| in sqrt(1-norm x infinity-norm), 0 when all tokens are alike (Dong et al. 2021)."""
    return _composite_norm(x - jnp.mean(x, axis=1, keepdims=True)) / jnp.maximum(_composite_norm(x), 1e-30)


@jax.jit
def stable_rank(x: TokenVectors) -> Float[Array, " batch"]:
    """||X||_F^2 / ||X||_2^2: the number of directions of the tokens, from 1 to min(tokens, features)."""
    squares = jnp.square(jnp.linalg.svd(x.astype(jnp.float32), compute_uv=False))
    return jnp.sum(squares, axis=-1) / jnp.maximum(jnp.max(squares, axis=-1), 1e-30)


@jax.jit
def scale_heterogeneity(x: TokenVectors) -> Float[Array, ""]:
    """log10(largest / smallest standard deviation of a feature), over examples and tokens: 0 for equal scales.

    Infinite where a feature is constant, NaN where all of them are.
    """
    deviations = jnp.std(x.astype(jnp.float32), axis=(0, 1))
    return jnp.log10(jnp.max(deviations)) - jnp.log10(jnp.min(deviations))


def _composite_norm(x: TokenVectors) -> Float[Array, " batch"]:
    size = jnp.abs(x.astype(jnp.float32))
    return jnp.sqrt(jnp.max(jnp.sum(size, axis=1), axis=1) * jnp.max(jnp.sum(size, axis=2), axis=1))
