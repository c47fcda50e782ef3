"""Forecasts that need no gradient: repeating the past, and linear maps in closed form. They are the bar for a model."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import metrics
from flaxformer_lab.parsing import nearest

Windows = Float[np.ndarray, "batch lookback channels"]
Forecasting = Any  # `tasks.forecasting` imports this file
Forecast = Callable[[Windows], Float[np.ndarray, "batch horizon targets"]]
CHUNK = 2048  # windows that are in memory at once

# What a linear map reads: a channel's own past, with weights of its own or of all channels together, or all channels.
# `_last` subtracts the last value first and adds it again.
LINEAR = ("linear", "linear_shared", "linear_all")
BASELINES = ("repeat", "seasonal_naive", *LINEAR, *(f"{name}_last" for name in LINEAR))


class Ridge:
    """Least |y - x W - b|^2 + alpha |W|^2, from rows that come batch by batch."""

    def __init__(self, alpha: float):
        self._alpha, self._sums = alpha, None

    def add(self, x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, "rows outputs"]) -> None:
        """Sums over rows; products within a batch in the rows' own precision, and their sums in float64."""
        parts = (len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y)
        parts = [np.asarray(part, np.float64) for part in parts]
        self._sums = (
            parts if self._sums is None else [total + part for total, part in zip(self._sums, parts, strict=True)]
        )

    def solve(self) -> tuple[Float32[np.ndarray, "features outputs"], Float32[np.ndarray, " outputs"]]:
        """The weights W and the intercept b."""
        count, x_sum, y_sum, gram, moments = self._sums
        x_mean, y_mean = x_sum / count, y_sum / count
        gram = gram - count * np.outer(x_mean, x_mean) + self._alpha * np.eye(len(gram))
        weights = np.linalg.solve(gram, moments - count * np.outer(x_mean, y_mean))
        return weights.astype(np.float32), (y_mean - x_mean @ weights).astype(np.float32)


def fit(task: Forecasting, name: str, *, alpha: float = 1.0) -> Forecast:
    """A baseline that has seen the training windows; alpha: of the ridge regression.

    A window in which a target is missing is left out of that target's fit.

    Raises:
        ConfigError: no such baseline, or a lookback shorter than a season.
    """
    layout, horizon = task.layout, task.horizon
    targets = np.array(layout.targets)
    if name == "repeat":
        return lambda series: np.repeat(series[:, -1:, targets], horizon, axis=1)
    if name == "seasonal_naive":
        season = task.metadata["season"]
        if season > layout.lookback:
            raise ConfigError(
                f"seasonal_naive looks back one season, {season} steps, and task.lookback={layout.lookback}; raise it"
            )
        steps = layout.lookback - season + np.arange(horizon) % season
        return lambda series: series[:, steps][..., targets]
    kind = name.removesuffix("_last")
    if name not in BASELINES:
        raise ConfigError(f"{name} is no baseline: {nearest(name, BASELINES)}choose from {', '.join(BASELINES)}")
    return _fit_linear(task, kind, name != kind, alpha)


def linear_maps(
    task: Forecasting, kind: str, *, subtracts_last: bool, alpha: float
) -> list[tuple[Float32[np.ndarray, "features horizon"], Float32[np.ndarray, " horizon"]]]:
    """The weights and the intercept for each target; one pair for all with `linear_shared`."""
    targets = np.array(task.layout.targets)
    fits = [Ridge(alpha) for _ in range(1 if kind == "linear_shared" else len(targets))]
    for batch in _batches(task, "train"):
        series = batch["inputs"]["series"]
        level = series[:, -1:] * np.float32(subtracts_last)
        y, whole = batch["targets"] - level[..., targets], batch["loss_weights"].all(axis=1)
        for place, target in enumerate(targets):
            rows = whole[:, place]
            fits[place % len(fits)].add(_seen(series - level, kind, target)[rows], y[rows][..., place])
    return [each.solve() for each in fits]


def _seen(series: Windows, kind: str, target: int | np.integer) -> Float[np.ndarray, "batch features"]:
    """What the map for a target sees."""
    return series.reshape(len(series), -1) if kind == "linear_all" else series[..., target]


def _fit_linear(task: Forecasting, kind: str, subtracts_last: bool, alpha: float) -> Forecast:
    targets = np.array(task.layout.targets)
    maps = linear_maps(task, kind, subtracts_last=subtracts_last, alpha=alpha)

    def forecast(series: Windows) -> Float[np.ndarray, "batch horizon targets"]:
        level = series[:, -1:] * np.float32(subtracts_last)
        read = [_seen(series - level, kind, target) for target in targets]
        each = [x @ weights + bias for x, (weights, bias) in zip(read, maps * (len(read) // len(maps)), strict=True)]
        return np.stack(each, axis=2) + level[..., targets]

    return forecast


def evaluate(task: Forecasting, forecast: Forecast, split: str = "test") -> dict[str, float]:
    """The task's metrics of a split."""
    measured = jax.jit(task.loss_and_metrics)
    states = []
    for batch in _batches(task, split):
        inputs = {name: batch[name] for name in ("targets", "loss_weights")}
        states.append(jax.device_get(measured(jnp.asarray(forecast(batch["inputs"]["series"])), inputs)))
    return metrics.compute(states)


def _batches(task: Forecasting, split: str) -> Iterator[dict]:
    """All windows of a split, prepared, as NumPy's arrays."""
    examples = task.examples(split)
    for first in range(0, examples.number, CHUNK):
        rows = np.arange(first, min(first + CHUNK, examples.number), dtype=np.int32)
        stored = examples.read(examples.evaluation_indices(rows)) | {"example_weight": np.ones(len(rows), np.float32)}
        yield jax.tree.map(np.asarray, task.prepare(stored, None, training=False))
