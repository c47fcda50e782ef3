"""Convolution as a dense map of each position's neighbourhood: one matrix product on every device."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def neighbourhood_1d(
    x: Float[Array, "batch tokens features"],
    kernel_size: int,
    *,
    causal: bool,
    dilation: int = 1,
    circular: bool = False,
) -> Float[Array, "batch tokens {kernel_size}*features"]:
    """Each token's neighbours concatenated, `dilation` apart; beyond the ends zeros, or the other end (circular).

    The window is centred (an even one reaches one further back), or ends at the token with `causal`.
    """
    before = kernel_size - 1 if causal else kernel_size // 2
    ends = (before * dilation, (kernel_size - 1 - before) * dilation)
    padded = jnp.pad(x, ((0, 0), ends, (0, 0)), mode="wrap" if circular else "constant")
    starts, tokens = range(0, kernel_size * dilation, dilation), x.shape[1]
    return jnp.concatenate([padded[:, start : start + tokens] for start in starts], axis=-1)


def max_pool_halves(
    x: Float[Array, "batch tokens features"], valid: Bool[Array, "batch tokens"] | None = None
) -> Float[Array, "batch (tokens+1)//2 features"]:
    """The maximum of every second token and its two neighbours; 0 where none of the three is valid."""
    lowest = jnp.finfo(x.dtype).min
    x = x if valid is None else jnp.where(valid[:, :, None], x, lowest)
    count = (x.shape[1] + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 2), (0, 0)), constant_values=lowest)
    left, middle, right = (padded[:, start : start + 2 * count - 1 : 2] for start in range(3))
    pooled = jnp.maximum(jnp.maximum(left, middle), right)
    return pooled if valid is None else jnp.where(pooled == lowest, 0, pooled)


def neighbourhood_2d(
    x: Float[Array, "batch rows columns features"], kernel_size: int, stride: int = 1
) -> Float[Array, "batch new_rows new_columns {kernel_size}*{kernel_size}*features"]:
    """Each position's square neighbourhood concatenated row by row, with zeros beyond the edges.

    stride: only every so many-th row and column, which must divide both, begins one.
    """
    before = kernel_size // 2
    pad = (before, kernel_size - 1 - before)
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    rows, columns = x.shape[1:3]
    shifts = [(row, column) for row in range(kernel_size) for column in range(kernel_size)]
    parts = [padded[:, row : row + rows : stride, column : column + columns : stride] for row, column in shifts]
    return jnp.concatenate(parts, axis=-1)
