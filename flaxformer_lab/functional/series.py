"""Windows of a time series as tokens, and the level and spread of each window."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def num_patches(steps: int, length: int, stride: int, *, padded: bool) -> int:
    """How many patches `series_patches` makes."""
    return (steps + (stride if padded else 0) - length) // stride + 1


def series_patches(
    x: Float[Array, "batch steps channels"], length: int, stride: int, *, padded: bool
) -> Float[Array, "batch patches features"]:
    """Every `stride` steps, `length` steps flattened; a patch's features run step by step.

    padded: the last step is repeated `stride` times first (Nie et al. 2023, section 3.1), so that no step is left out.
    """
    count = num_patches(x.shape[1], length, stride, padded=padded)
    if padded:
        x = jnp.pad(x, ((0, 0), (0, stride), (0, 0)), mode="edge")
    # One slice for each step of a patch: a gather's gradient would be a scatter.
    steps = [x[:, first : first + stride * (count - 1) + 1 : stride] for first in range(length)]
    return jnp.stack(steps, axis=2).reshape(x.shape[0], count, length * x.shape[2])


def average_pairs(x: Float[Array, "batch steps channels"]) -> Float[Array, "batch half channels"]:
    """The means of two steps each; an odd last step is left out."""
    even = x[:, : x.shape[1] // 2 * 2]
    return (even[:, ::2] + even[:, 1::2]) / 2


def instance_statistics(
    x: Float[Array, "batch steps channels"], observed: Bool[Array, "batch steps channels"], epsilon: float
) -> tuple[Float[Array, "batch 1 channels"], Float[Array, "batch 1 channels"]]:
    """The mean of each window and channel, and sqrt(variance + epsilon) (Kim et al. 2022, eq. 1).

    Of what was observed; where nothing was, of all steps.
    """
    known = observed | ~jnp.any(observed, axis=1, keepdims=True)
    weights = known.astype(jnp.float32)
    count = jnp.sum(weights, axis=1, keepdims=True)
    mean = jnp.sum(x * weights, axis=1, keepdims=True) / count
    variance = jnp.sum(jnp.square(x - mean) * weights, axis=1, keepdims=True) / count
    return mean, jnp.sqrt(variance + epsilon)
