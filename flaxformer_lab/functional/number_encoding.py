"""A number as several features, from which a linear map makes any curve (Gorishniy et al. 2022, section 3)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def piecewise_linear(
    x: Float[Array, "batch columns"], edges: Float[Array, "columns edges"]
) -> Float[Array, "batch columns bins"]:
    """How far each number lies along each bin between two of its column's edges, which never fall: 0 before, 1 behind.

    The first and the last bin go on beyond their outer edge. A bin without width is a step, 1 from its edge on.
    """
    low, width = edges[None, :, :-1], jnp.diff(edges, axis=1)[None]
    bins = jnp.arange(low.shape[2])[None, None]
    along = (x[:, :, None] - low) / jnp.where(width > 0, width, 1)
    along = jnp.clip(along, jnp.where(bins == 0, -jnp.inf, 0), jnp.where(bins == low.shape[2] - 1, jnp.inf, 1))
    return jnp.where(width > 0, along, (x[:, :, None] >= low).astype(x.dtype))


def periodic(
    x: Float[Array, "batch columns"], frequencies: Float[Array, "columns frequencies"]
) -> Float[Array, "batch columns waves"]:
    """Sines and cosines of 2 pi times multiples of each number; twice as many waves as frequencies."""
    phases = 2 * jnp.pi * x[:, :, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=2)
