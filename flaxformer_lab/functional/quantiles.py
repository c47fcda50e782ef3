"""Columns mapped to a normal distribution by the ranks of their values, as scikit-learn's QuantileTransformer does."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

MOST_QUANTILES = 1000
SMALLEST_SHARE = 1e-7  # a value beyond all that were fitted goes where this share of a normal distribution lies beyond


def fit_quantiles(columns: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "quantiles columns"]:
    """The quantiles of each column at equal steps, its minimum and maximum included; NaN are left out.

    They are rounded to float32, the type of what they will be compared with, and never fall.
    """
    shares = np.linspace(0, 1, max(2, min(MOST_QUANTILES, len(columns))))
    return np.maximum.accumulate(np.nanquantile(columns, shares, axis=0).astype(np.float32), axis=0)


@jax.jit
def to_normal(
    x: Float[Array, "batch columns"], quantiles: Float[Array, "quantiles columns"]
) -> Float[Array, "batch columns"]:
    """The values of a normal distribution that have the same ranks: monotone in each column, within -5.2 and 5.2.

    Between quantiles the share is interpolated. A value that several quantiles have gets the middle of their shares;
    the smallest one that was fitted, and all below it, the lowest value, the largest likewise. A constant becomes 0.
    """
    return jax.vmap(_to_normal, in_axes=1, out_axes=1)(x, quantiles)


def _to_normal(x: Float[Array, " batch"], quantiles: Float[Array, " quantiles"]) -> Float[Array, " batch"]:
    shares = jnp.linspace(0, 1, len(quantiles))
    low, high = quantiles[0], quantiles[-1]
    # The share of what lies above is computed by itself: 1 - share would round it away.
    below, above = _interpolated(x, quantiles, shares), _interpolated(-x, -quantiles[::-1], shares)
    below = jnp.where(x <= low, 0, jnp.where(x >= high, 1, below))
    above = jnp.where(x <= low, 1, jnp.where(x >= high, 0, above))
    smaller = jnp.clip(jnp.minimum(below, above), SMALLEST_SHARE, 0.5)
    size = -jax.scipy.special.ndtri(smaller)
    return jnp.where((low == high) & (x == low), 0.0, jnp.where(below < above, -size, size))


def _interpolated(
    x: Float[Array, " batch"], quantiles: Float[Array, " quantiles"], shares: Float[Array, " quantiles"]
) -> Float[Array, " batch"]:
    """The share below each value; of a value that several quantiles have, the middle of theirs."""
    first, last = (jnp.searchsorted(quantiles, x, side=side) for side in ("left", "right"))
    # Quantiles first to last - 1 equal x; where there are none, first = last and x lies between first - 1 and first.
    left, right = jnp.clip(first - 1, 0, len(quantiles) - 2), jnp.clip(first, 1, len(quantiles) - 1)
    step = quantiles[right] - quantiles[left]
    between = shares[left] + (shares[right] - shares[left]) * (x - quantiles[left]) / jnp.where(step > 0, step, 1)
    equal = (shares[jnp.clip(first, 0, len(quantiles) - 1)] + shares[jnp.clip(last - 1, 0, len(quantiles) - 1)]) / 2
    return jnp.where(last > first, equal, between)
