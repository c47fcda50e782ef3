"""Where a model looks: how much of its attention, and of its output's gradient, lies inside the objects of an image."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any  # a pytree of arrays
Pixels = Float[Array, "batch rows columns"]


def concentration(shown: Float[Array, "batch *places"], objects: Float[Array, "batch *places"]) -> Float[Array, ""]:
    """The share of what is shown that lies in objects, divided by their share of the area: 1 where it is spread evenly.

    shown: not negative. objects: from 0 to 1, how much of each place they cover. The mean over examples that have both.
    """
    shown, objects = (each.reshape(each.shape[0], -1) for each in (shown, objects))
    area, total = jnp.mean(objects, axis=1), jnp.sum(shown, axis=1)
    counts = (area > 0) & (total > 0)
    share = jnp.sum(shown * objects, axis=1) / jnp.where(counts, total * area, 1)
    return jnp.sum(jnp.where(counts, share, 0)) / jnp.sum(counts)


def covered_tokens(objects: Pixels, tokens: int) -> Float[Array, "batch tokens"]:
    """How much of each token's patch objects cover; tokens are square patches of the image, row by row.

    Raises:
        ValueError: no patches of one size are so many.
    """
    batch, rows, columns = objects.shape
    size = round((rows * columns / tokens) ** 0.5)
    if size == 0 or rows % size or columns % size or rows * columns != tokens * size**2:
        raise ValueError(f"{tokens} tokens are no square patches of {rows} x {columns} pixels")
    patches = objects.reshape(batch, rows // size, size, columns // size, size)
    return jnp.mean(patches, axis=(2, 4)).reshape(batch, -1)


def attention_received(weights: Float[Array, "batch heads queries keys"]) -> Float[Array, "batch keys"]:
    """What each token is given, the mean over heads and queries."""
    return jnp.mean(weights, axis=(1, 2))


def saliency(
    apply: Callable[[Float[Array, "batch ..."]], Float[Array, "batch classes"]],
    inputs: Float[Array, "batch ... channels"],
) -> Float[Array, "batch ..."]:
    """|d (largest logit) / d input|, summed over channels (Simonyan et al. 2014)."""
    gradient = jax.grad(lambda x: jnp.sum(jnp.max(apply(x), axis=-1)))(inputs)
    return jnp.sum(jnp.abs(gradient), axis=-1)


def has_token_places(objects: Pixels, tokens: int) -> bool:
    """Whether so many tokens are square patches of the image."""
    try:
        jax.eval_shape(lambda each: covered_tokens(each, tokens), objects)
    except ValueError:
        return False
    return True
