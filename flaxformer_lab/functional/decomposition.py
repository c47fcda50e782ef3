"""A series as a seasonal part and a trend, which is its moving average (Wu et al. 2021, eq. 1)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import broadcast_parameter
from flaxformer_lab.functional.products import product

Series = Float[Array, "batch tokens features"]


def averaging_matrix(tokens: int, kernel_size: int) -> Float[np.ndarray, "{tokens} {tokens}"]:
    """Row t has the weights of the tokens that the average at t is of; the first and the last count beyond the ends.

    An even kernel reaches one further back, as in FEDformer's code; Autoformer's shortens the series then.
    """
    before = kernel_size // 2
    window = np.arange(tokens)[:, None] + np.arange(kernel_size) - before
    matrix = np.zeros((tokens, tokens))
    np.add.at(matrix, (np.arange(tokens)[:, None], np.clip(window, 0, tokens - 1)), 1 / kernel_size)
    return matrix


def moving_averages(x: Series, kernel_sizes: Sequence[int]) -> Float[Array, "kernels batch tokens features"]:
    """The moving average of each size, with edge padding."""
    matrices = np.stack([averaging_matrix(x.shape[1], size) for size in kernel_sizes])
    return product("kts,bsf->kbtf", jnp.asarray(matrices, jnp.float32), x).astype(x.dtype)


def decompose_series(
    x: Series,
    kernel_sizes: Sequence[int],
    weight: Float[Array, " kernels"] | None = None,
    bias: Float[Array, " kernels"] | None = None,
) -> tuple[Series, Series]:
    """(seasonal, trend): x less its moving average, and that.

    Several averages are mixed by softmax(x weight + bias) at each token and feature (Zhou et al. 2022, section 3.4).
    """
    averages = moving_averages(x, kernel_sizes)
    if weight is None:
        trend = jnp.mean(averages, axis=0)
    else:
        shape = (*x.shape, len(kernel_sizes))
        weight, bias = (jnp.moveaxis(broadcast_parameter(each, shape, x.dtype), -1, 0) for each in (weight, bias))
        trend = jnp.sum(averages * jax.nn.softmax(x[None] * weight + bias, axis=0), axis=0)
    return x - trend, trend
