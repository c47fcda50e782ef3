"""Errors of forecasts as averages over windows, steps and channels; a value that was not observed has weight 0."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import over_features
from flaxformer_lab.functional.metrics import Average

Forecasts = Float[Array, "*batch channels"]


def mean_squared_error(errors: Forecasts, weights: Forecasts) -> Average:
    """The mean of error^2."""
    return Average(jnp.sum(jnp.square(errors) * weights), jnp.sum(weights))


def mean_absolute_error(errors: Forecasts, weights: Forecasts) -> Average:
    """The mean of |error|."""
    return Average(jnp.sum(jnp.abs(errors) * weights), jnp.sum(weights))


def quantile_score(
    quantiles: Float[Array, "*batch channels levels"],
    targets: Forecasts,
    weights: Forecasts,
    levels: tuple[float, ...],
) -> Average:
    """Twice the pinball loss, a mean over levels q: 2 max(q e, (q - 1) e) with e = target - quantile.

    With many levels it is the CRPS, the continuous ranked probability score (Laio and Tamea 2007); with 0.5 alone it is
    the absolute error.
    """
    errors = targets[..., None] - quantiles
    share = over_features(jnp.asarray(levels, errors.dtype), errors)
    losses = 2 * jnp.mean(jnp.maximum(share * errors, (share - 1) * errors), axis=-1)
    return Average(jnp.sum(losses * weights), jnp.sum(weights))


def coverage(quantiles: Float[Array, "*batch channels levels"], targets: Forecasts, weights: Forecasts) -> Average:
    """The share of targets between the lowest and the highest quantile."""
    inside = (quantiles[..., 0] <= targets) & (targets <= quantiles[..., -1])
    return Average(jnp.sum(inside * weights), jnp.sum(weights))


def mean_absolute_scaled_error(errors: Forecasts, weights: Forecasts, scale: Float[Array, " channels"]) -> Average:
    """MASE: the mean of |error| / scale, with the training error of the seasonal naive forecast of a channel as scale.

    Hyndman and Koehler 2006. A channel whose scale is 0 does not count.
    """
    weights = weights * over_features(scale > 0, weights)
    scaled = jnp.abs(errors) / over_features(jnp.where(scale > 0, scale, 1), errors)
    return Average(jnp.sum(scaled * weights), jnp.sum(weights))


def symmetric_percentage_error(outputs: Forecasts, targets: Forecasts, weights: Forecasts) -> Average:
    """sMAPE: the mean of 200 |output - target| / (|output| + |target|), from 0 to 200; 0 where both are 0."""
    sizes = jnp.abs(outputs) + jnp.abs(targets)
    errors = 200 * jnp.abs(outputs - targets) / jnp.where(sizes > 0, sizes, 1)
    return Average(jnp.sum(errors * weights), jnp.sum(weights))
