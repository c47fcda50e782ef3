"""Dropout with one key per example, so that a batch split over devices or micro-batches drops the same features."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(x: Float[Array, "batch *rest"], keys: Key[Array, " batch"], rate: float) -> Float[Array, "batch *rest"]:
    """Zeroes each value with probability `rate` and divides the rest by 1 - rate (Srivastava et al. 2014)."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def fold_in(keys: Key[Array, " batch"], data: int) -> Key[Array, " batch"]:
    """Returns the keys of the sub-stream `data`, one per example."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
