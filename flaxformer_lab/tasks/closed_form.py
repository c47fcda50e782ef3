"""Forecasts that need no gradient: repeating the past, and linear maps in closed form. They are the bar for a model."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import metrics
from flaxformer_lab.parsing import nearest
from flaxformer_lab.tasks.forecasting import Forecasting

Windows = Float[np.ndarray, "batch lookback channels"]
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


def _fit_linear(task: Forecasting, kind: str, subtracts_last: bool, alpha: float) -> Forecast:
    targets = np.array(task.layout.targets)

    def last(series: Windows) -> Float[np.ndarray, "batch 1 channels"]:
        return series[:, -1:] * np.float32(subtracts_last)

    def read(series: Windows, place: int) -> Float[np.ndarray, "batch features"]:
        """What the map for a target sees."""
        x = series - last(series)
        return x.reshape(len(x), -1) if kind == "linear_all" else x[..., targets[place]]

    fits = [Ridge(alpha) for _ in range(1 if kind == "linear_shared" else len(targets))]
    for batch in _batches(task, "train"):
        series = batch["inputs"]["series"]
        y = batch["targets"] - last(series)[..., targets]
        whole = batch["loss_weights"].all(axis=1)
        for place in range(len(targets)):
            rows = whole[:, place]
            fits[place % len(fits)].add(read(series, place)[rows], y[rows][..., place])
    solved = [each.solve() for each in fits]
    maps = [solved[place % len(fits)] for place in range(len(targets))]

    def forecast(series: Windows) -> Float[np.ndarray, "batch horizon targets"]:
        each = [read(series, place) @ weights + bias for place, (weights, bias) in enumerate(maps)]
        return np.stack(each, axis=2) + last(series)[..., targets]

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
        stored = examples.read(rows) | {"example_weight": np.ones(len(rows), np.float32)}
        yield jax.tree.map(np.asarray, task.prepare(stored, None, training=False))
