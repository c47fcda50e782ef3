"""Statistics of attention weights: entropy, distance, and the difference between heads."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.attention import mean_weights

Weights = Float[Array, "batch heads tokens tokens"]


@functools.partial(jax.jit, static_argnames=("causal", "window"))
def entropy(
    weights: Float[Array, "#batch heads tokens tokens"],
    *,
    causal: bool = False,
    window: int | None = None,
    asked: Float[Array, "#batch tokens"] | None = None,
) -> Float[Array, " heads"]:
    """-sum a log a / log n, where n tokens are visible to the query: 1 for equal weights, 0 for a single token.

    The mean over examples and over queries that see at least two tokens, weighted by `asked`; NaN where none does.
    Weights that all examples share have a batch of one.
    """
    visible = jnp.sum(mean_weights(1, weights.shape[-1], causal=causal, window=window)[0, 0] > 0, axis=-1)
    positive = jnp.where(weights > 0, weights, 1.0)
    share = -jnp.sum(positive * jnp.log(positive), axis=-1) / jnp.log(jnp.maximum(visible, 2))[None, None]
    counts = jnp.ones_like(share) * (1.0 if asked is None else asked[:, None]) * (visible > 1)[None, None]
    return jnp.sum(share * counts, axis=(0, 2)) / jnp.sum(counts, axis=(0, 2))


@jax.jit
def mean_distance(weights: Weights) -> Float[Array, " heads"]:
    """sum_k a_qk |q - k|, the mean over examples and queries, in tokens."""
    places = jnp.arange(weights.shape[-1])
    distance = jnp.abs(places[:, None] - places[None]).astype(weights.dtype)
    return jnp.mean(jnp.sum(weights * distance[None, None], axis=-1), axis=(0, 2))


@jax.jit
def head_diversity(weights: Weights) -> Float[Array, ""]:
    """1 - the mean cosine between two heads' maps: 0 where all heads are alike, and for one head."""
    maps = _unit_maps(weights)
    heads = maps.shape[1]
    if heads == 1:
        return jnp.zeros(())
    cosines = jnp.einsum("bhm,bgm->bhg", maps, maps)
    apart = jnp.sum(cosines, axis=(1, 2)) - jnp.trace(cosines, axis1=1, axis2=2)
    return 1 - jnp.mean(apart) / (heads * (heads - 1))


@jax.jit
def effective_rank(weights: Weights) -> Float[Array, ""]:
    """exp(entropy of the normalised singular values) of the heads' maps (Roy & Vetterli 2007), from 1 to heads."""
    gram = jnp.einsum("bhm,bgm->bhg", *[_unit_maps(weights)] * 2)
    squares = jnp.linalg.eigvalsh(gram)
    # The square root would magnify rounding errors to what looks like another head.
    rounding = gram.shape[-1] * jnp.finfo(gram.dtype).eps * jnp.max(squares, axis=-1, keepdims=True)
    values = jnp.sqrt(jnp.where(squares > rounding, squares, 0.0))
    shares = values / jnp.sum(values, axis=-1, keepdims=True)
    logs = jnp.log(jnp.where(shares > 0, shares, 1.0))
    return jnp.mean(jnp.exp(-jnp.sum(shares * logs, axis=-1)))


def _unit_maps(weights: Weights) -> Float[Array, "batch heads pairs"]:
    maps = weights.reshape(*weights.shape[:2], -1).astype(jnp.float32)
    return maps / jnp.maximum(jnp.linalg.norm(maps, axis=-1, keepdims=True), 1e-30)
