"""Convolution as a dense map of each position's neighbourhood: one matrix product on every device."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def neighbourhood_1d(
    x: Float[Array, "batch tokens features"], kernel_size: int, *, causal: bool, dilation: int = 1
) -> Float[Array, "batch tokens {kernel_size}*features"]:
    """Each token's neighbours concatenated, with zeros beyond the ends; they are `dilation` tokens apart.

    The window is centred (an even one reaches one further back), or ends at the token with `causal`.
    """
    before = kernel_size - 1 if causal else kernel_size // 2
    padded = jnp.pad(x, ((0, 0), (before * dilation, (kernel_size - 1 - before) * dilation), (0, 0)))
    starts, tokens = range(0, kernel_size * dilation, dilation), x.shape[1]
    return jnp.concatenate([padded[:, start : start + tokens] for start in starts], axis=-1)


def neighbourhood_2d(
    x: Float[Array, "batch rows columns features"], kernel_size: int
) -> Float[Array, "batch rows columns {kernel_size}*{kernel_size}*features"]:
    """Each position's square neighbourhood concatenated row by row, with zeros beyond the edges."""
    before = kernel_size // 2
    pad = (before, kernel_size - 1 - before)
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    rows, columns = x.shape[1:3]
    shifts = [(row, column) for row in range(kernel_size) for column in range(kernel_size)]
    return jnp.concatenate([padded[:, row : row + rows, column : column + columns] for row, column in shifts], axis=-1)
