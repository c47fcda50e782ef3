"""Forecasting: the next steps of a time series from the last ones; all windows of a split are examples."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from flaxformer_lab.data.series import (
    DAY,
    Series,
    calendar_marks,
    check_values,
    fill_forward,
    interpolate,
    mark_names,
    read_series,
)
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional import forecast_errors
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig, TimeMixerConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.series import ForecastHead, InstanceNorm, Layout, SeriesEmbedding
from flaxformer_lab.modules.series_decoder import DecoderHead, SourceTargetEmbedding, TrendHead
from flaxformer_lab.modules.series_scales import ScaleEmbedding, ScaleHead
from flaxformer_lab.parsing import nearest
from flaxformer_lab.registry import lookup, register
from flaxformer_lab.task_config import ForecastingConfig
from flaxformer_lab.tasks import closed_form
from flaxformer_lab.tasks.examples import Examples, series_windows
from flaxformer_lab.tasks.features import content_of_files, warn_of_changed_files
from flaxformer_lab.tasks.task import Batch, Keys, PrimaryMetric, Task

MSE = PrimaryMetric("mse", "MSE", higher_is_better=False, limits=(0.0, None), beside=("mae",))
SHOWN_STEPS = 4  # of the horizon, whose errors are reported: the first, and the end of each quarter


@register("task", "forecasting", config=ForecastingConfig)
class Forecasting(Task):
    """The errors are those of standardised values; MASE and sMAPE those of the values themselves.

    metadata: `channels`, the names of those that are read; `targets`, which of them are predicted; `mean` and `spread`
    of each in training; `seasonal_error`, the mean error of the seasonal naive forecast there, standardised; `step`,
    seconds from row to row; `season`, rows of a period; of a file of the user's own, `notes`, `columns`, how each
    channel is read, `has_zone`, whether its times have a time zone, and `content`, its digest.
    """

    primary_metric = MSE
    units = ("windows", 1)

    def __init__(self, config: ForecastingConfig, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self._known = None if metadata is None else metadata["channels"]
        self.metadata = self._read_metadata() if metadata is None else metadata
        self._targets = tuple(self.metadata["targets"])

    def _read_metadata(self) -> dict[str, Any]:
        config, series = self._config, self._series
        chosen = [_place(config, "targets", name, series.channels) for name in config.targets or series.channels]
        for split in series.borders:
            ahead = series.values[self._windowed_rows(split)][config.lookback :, chosen]
            if config.missing == "mask" and np.isnan(ahead).all():
                raise ConfigError(
                    f"task.missing=mask leaves nothing to predict in {split} of {config.dataset}, where every target's "
                    "value is missing; choose other task.targets, or task.missing=forward"
                )
        first, last = series.borders["train"]
        raw, values = (each[first:last].astype(np.float64) for each in (series.values, self._values))
        values = raw if config.missing == "mask" else values
        mean, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        season = config.season or max(1, DAY // series.step if series.step < DAY else 7)
        differences = np.abs(values[season:] - values[:-season]) / spread
        known = ~np.isnan(differences)
        seasonal_error = np.where(known, differences, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        return (
            {
                "channels": list(series.channels),
                "targets": chosen,
                "mean": mean.tolist(),
                "spread": spread.tolist(),
                "seasonal_error": seasonal_error.tolist(),
                "step": series.step,
                "season": season,
            }
            | ({"notes": list(series.notes)} if series.notes else {})
            | ({"columns": [column.as_json() for column in series.columns]} if series.columns else {})
            | ({} if series.has_zone is None else {"has_zone": series.has_zone})
            | content_of_files(config.dataset)
        )

    # ---------------------------------------------------------------------------------------------- the series

    @functools.cached_property
    def _series(self) -> Series:
        """The channels that are read, of a changed file those of the metadata.

        Raises:
            DataError: one of these is gone.
        """
        series = _chosen(read_series(self._config.dataset), self._config, self._known)
        check_values(series)
        return series

    @functools.cached_property
    def _values(self) -> Float32[np.ndarray, "rows channels"]:
        """The series without gaps."""
        return self.filled(self._series.values)

    def filled(self, values: Float32[np.ndarray, "rows channels"]) -> Float32[np.ndarray, "rows channels"]:
        """Values in the order of time without gaps, as `task.missing` says."""
        return (interpolate if self._config.missing == "linear" else fill_forward)(values)

    def _windowed_rows(self, split: str) -> slice:
        """The rows of a split's windows: those of validation and test begin `lookback` rows before the split.

        Raises:
            ConfigError: they have no window.
        """
        config, series = self._config, self._series
        first, last = series.borders[split]
        if split != "train":
            first = max(0, first - config.lookback)
        if last - first < config.lookback + config.horizon:
            raise ConfigError(
                f"task.lookback={config.lookback} and task.horizon={config.horizon} need "
                f"{config.lookback + config.horizon} rows, and {split} of {config.dataset} has {last - first:,}, its "
                "lookback included; choose shorter ones"
            )
        return slice(first, last)

    def examples(self, split: str) -> Examples:
        """Every window, of validation each `validation_stride`-th one.

        An example has `series` [lookback + horizon, channels] as the model sees it, `observed`, `marks`.
        """
        warn_of_changed_files(self._config.dataset, self.metadata)
        rows, series = self._windowed_rows(split), self._series
        values = self._values[rows]
        observed = ~np.isnan(series.values[rows]) if self._config.missing == "mask" else np.ones(values.shape, bool)
        arrays = {
            "series": self._scaled(values),
            "observed": observed,
            "marks": calendar_marks(series.time[rows], series.step),
        }
        stride = self._config.validation_stride if split == "validation" else 1
        return series_windows(arrays, self._config.lookback + self._config.horizon, stride)

    def _scaled(self, values: Float[np.ndarray, "*rows channels"]) -> Float32[np.ndarray, "*rows channels"]:
        """Values as the model sees them."""
        mean, spread = (np.array(self.metadata[name]) for name in ("mean", "spread"))
        return ((values - mean) / spread if self._config.standardised else values).astype(np.float32)

    # --------------------------------------------------------------------------------------------- the network

    @property
    def horizon(self) -> int:
        """Steps that are predicted."""
        return self._config.horizon

    @property
    def layout(self) -> Layout:
        """How a window becomes tokens."""
        config = self._config
        patches = {"patch_length": config.patch_length, "patch_stride": config.patch_stride}
        patches |= {"padded": config.patch_padding}
        return Layout(
            kind="variate" if config.tokens == "variate" else "patch",
            independent=config.channels == "independent",
            lookback=config.lookback,
            channels=len(self.metadata["channels"]),
            targets=self._targets,
            marks=len(self._mark_names) if config.marks else 0,
            kernel_sizes=config.decomposition,
            **(patches if config.tokens == "patch" else {}),
        )

    @property
    def _mark_names(self) -> tuple[str, ...]:
        return mark_names(self.metadata["step"])

    def network(self, config: ModelConfig) -> PureNetwork:
        task, layout = self._config, self.layout
        if isinstance(config, TimeMixerConfig):
            return self._network_of_scales(config)
        if getattr(lookup("model", config.name).build, "two_sequences", False):
            return self._network_with_decoder(config)
        if task.embedding == "identity" and layout.features != config.width:
            raise ConfigError(
                f"task.embedding=identity leaves the {layout.features} numbers of a token as they are, so "
                f"model.width={config.width} must be {layout.features}; set it so, or task.embedding=dense"
            )

        def build(rngs: Rngs) -> Network:
            norm = InstanceNorm(task.instance_norm, layout.channels)
            shared = {"norm": norm, "bias": config.bias, "rngs": rngs}
            embedding = SeriesEmbedding(layout, task.embedding, config.width, dtype=config.dtype, **shared)
            shared |= {"individual": task.individual, "quantiles": len(task.quantiles) or None}
            head = ForecastHead(layout, task.head, config.width, task.horizon, **shared)
            grid = (layout.tokens,)
            return Network(config, embedding=embedding, grid=grid, outputs=task.horizon, head=head, rngs=rngs)

        return functionalize(build)

    @property
    def overlap(self) -> int:
        """Windows in a row that have a row in common."""
        return self._config.lookback + self._config.horizon

    def solution(self, config: ModelConfig, penalty: float) -> dict[str, np.ndarray]:
        """The least squares of a head alone: a map from lookback to horizon."""
        task, blocks = self._config, getattr(config, "depth", None)
        settings = {
            "model.depth": (blocks, 0),
            "model.norm.kind": (getattr(getattr(config, "norm", None), "kind", "off"), "off"),
            "model.position": (getattr(config, "position", "off"), "off"),
            "model.bias": (config.bias, True),
            "task.quantiles": (task.quantiles, ()),
            "task.tokens": (task.tokens, "variate"),
            "task.channels": (task.channels, "mixed"),
            "task.embedding": (task.embedding, "identity"),
            "task.decomposition": (task.decomposition, ()),
            "task.marks": (task.marks, False),
            "task.loss": (task.loss, "mse"),
        }
        for knob, (value, needed) in settings.items():
            if value != needed:
                raise ConfigError(
                    f"{knob}={value} with optimizer.name=ridge, which needs {needed}: a closed form is known for a map "
                    "from lookback to horizon; set it so, or choose optimizer.name=adamw"
                )
        if task.instance_norm not in ("off", "last"):
            raise ConfigError(
                f"task.instance_norm={task.instance_norm} with optimizer.name=ridge, which needs off or last"
            )
        kind = "linear" if task.individual else "linear_shared"
        maps = closed_form.linear_maps(self, kind, subtracts_last=task.instance_norm == "last", alpha=penalty)
        kernel, bias = (np.stack(each) if task.individual else each[0] for each in zip(*maps, strict=True))
        return {"head.map.kernel": kernel, "head.map.bias": bias}

    def _network_with_decoder(self, config: ModelConfig) -> PureNetwork:
        """The decoder's tokens are the last `label_length` steps of the window, and the horizon's."""
        task, layout = self._config, self.layout
        if task.tokens != "step" or task.channels != "mixed" or task.label_length > task.lookback:
            raise ConfigError(
                f"model.name={config.name} reads steps of all channels, and its decoder the last task.label_length="
                f"{task.label_length} of them: set task.tokens=step (not {task.tokens}), task.channels=mixed (not "
                f"{task.channels}) and task.label_length to at most task.lookback={task.lookback}"
            )
        self._refuse_unread(config, "decomposition", "embedding", "head")
        averages = getattr(config, "moving_average", ())

        def build(rngs: Rngs) -> Network:
            shared = {"horizon": task.horizon, "norm": InstanceNorm(task.instance_norm, layout.channels), "rngs": rngs}
            options = {"label_length": task.label_length, "moving_average": averages, "dtype": config.dtype}
            embedding = SourceTargetEmbedding(layout.channels, layout.marks, config.width, **options, **shared)
            shared |= {"quantiles": len(task.quantiles) or None, "bias": config.bias}
            if averages:
                head = TrendHead(config.width, layout.targets, blocks=config.depth, **shared)
            else:
                head = DecoderHead(config.width, layout.targets, **shared)
            grid = {"source": (task.lookback,), "target": (task.label_length + task.horizon,)}
            return Network(config, embedding=embedding, grid=grid, outputs=task.horizon, head=head, rngs=rngs)

        return functionalize(build)

    def _refuse_unread(self, config: ModelConfig, *knobs: str) -> None:
        """Raises ConfigError where a knob of the task is set that the network with this model would not read."""
        for knob in dataclasses.fields(self._config):
            value = getattr(self._config, knob.name)
            if knob.name in knobs and value != knob.default:
                raise ConfigError(
                    f"task.{knob.name}={value} with model.name={config.name}, which has an embedding and a head of its "
                    f"own; leave it at {str(knob.default).lower() if knob.default != () else 'none'}, or choose "
                    "model.name=transformer"
                )

    def _network_of_scales(self, config: TimeMixerConfig) -> PureNetwork:
        """The window and coarser copies of it, each with a norm of its own."""
        task, layout = self._config, self.layout
        if task.tokens != "step" or task.channels != "independent" or task.lookback < 2**config.scales:
            raise ConfigError(
                f"model.name=timemixer reads steps of each channel by itself, at {config.scales} more scales "
                f"(model.scales): set task.tokens=step (not {task.tokens}), task.channels=independent (not "
                f"{task.channels}) and task.lookback to at least {2**config.scales} (not {task.lookback})"
            )
        self._refuse_unread(config, "decomposition", "embedding", "head", "individual")
        steps = tuple(task.lookback // 2**scale for scale in range(config.scales + 1))

        def build(rngs: Rngs) -> Network:
            norms = [InstanceNorm(task.instance_norm, layout.channels) for _ in steps]
            embedding = ScaleEmbedding(layout, config.width, norms=norms, dtype=config.dtype, rngs=rngs)
            shared = {"quantiles": len(task.quantiles) or None, "norm": norms[0], "rngs": rngs}
            head = ScaleHead(steps, config.width, layout.targets, task.horizon, bias=config.bias, **shared)
            grid = {str(scale): (number,) for scale, number in enumerate(steps)}
            return Network(config, embedding=embedding, grid=grid, outputs=task.horizon, head=head, rngs=rngs)

        return functionalize(build)

    def prepare(self, examples: Batch, keys: Keys, *, training: bool) -> Batch:
        del keys, training
        lookback, targets = self._config.lookback, np.array(self._targets)
        series, observed = examples["series"], examples["observed"]
        weights = observed[:, lookback:, targets].astype(jnp.float32) * examples["example_weight"][:, None, None]
        return {
            "inputs": {
                "series": series[:, :lookback],
                "observed": observed[:, :lookback],
                "marks": examples["marks"],
            },
            "targets": series[:, lookback:, targets],
            "loss_weights": weights,
        }

    def loss_and_metrics(self, outputs: Float[Array, "batch horizon targets *quantiles"], batch: Batch) -> Metrics:
        targets, weights, levels = batch["targets"], batch["loss_weights"], self._config.quantiles
        mean, spread, scale = (self._of_targets(name) for name in ("mean", "spread", "seasonal_error"))
        of_quantiles = {}
        if levels:
            unit = weights if self._config.standardised else weights / spread
            score = forecast_errors.quantile_score(outputs, targets, unit, levels)
            of_quantiles = {
                "crps": forecast_errors.Average(score.total, jnp.sum(weights)),
                "coverage": forecast_errors.coverage(outputs, targets, weights),
            }
            outputs = outputs[..., levels.index(0.5)]
        errors = outputs - targets
        if self._config.standardised:
            outputs, targets = (each * spread + mean for each in (outputs, targets))
        else:
            errors = errors / spread
        metrics = {
            "mse": forecast_errors.mean_squared_error(errors, weights),
            "mae": forecast_errors.mean_absolute_error(errors, weights),
            "smape": forecast_errors.symmetric_percentage_error(outputs, targets, weights),
        }
        if self._has_scale:
            metrics["mase"] = forecast_errors.mean_absolute_scaled_error(errors, weights, scale[0, 0])
        at_steps = {
            f"mse_at_{step}": forecast_errors.mean_squared_error(errors[:, step - 1], weights[:, step - 1])
            for step in shown_steps(self._config.horizon)
        }
        metrics |= of_quantiles
        return {"loss": metrics["crps" if levels else self._config.loss]} | metrics | at_steps

    def predictions_of(
        self, outputs: Float[Array, "batch horizon targets *quantiles"]
    ) -> Float[Array, "batch horizon targets *quantiles"]:
        """In the units of the data; quantiles in the order of `task.quantiles`."""
        if not self._config.standardised:
            return outputs
        mean, spread = self._mean_and_spread(outputs)
        return outputs * spread + mean

    def outputs_of(
        self, predictions: Float[Array, "batch horizon targets *quantiles"]
    ) -> Float[Array, "batch horizon targets *quantiles"]:
        if not self._config.standardised:
            return predictions
        mean, spread = self._mean_and_spread(predictions)
        return (predictions - mean) / spread

    def _mean_and_spread(self, outputs: Array) -> tuple[Array, Array]:
        """[1, 1, targets], with one more axis for quantiles."""
        more = [1] * (outputs.ndim - 3)
        return tuple(self._of_targets(name).reshape(1, 1, -1, *more) for name in ("mean", "spread"))

    @property
    def _no_scale(self) -> str:
        return (
            f"there is no MASE: in training no target differs from its value task.season={self.metadata['season']} "
            "rows before, or there are no such rows"
        )

    @property
    def _has_scale(self) -> bool:
        """Whether a target has a seasonal error in training, without which there is no MASE."""
        return any(self.metadata["seasonal_error"][target] > 0 for target in self._targets)

    def _of_targets(self, name: str) -> Float[Array, "1 1 targets"]:
        return jnp.asarray(np.array(self.metadata[name], np.float32)[np.array(self._targets)])[None, None]

    def input_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        window = (batch_size, self._config.lookback, len(self.metadata["channels"]))
        marks = (batch_size, self._config.lookback + self._config.horizon, len(self._mark_names))
        return {
            "series": jax.ShapeDtypeStruct(window, jnp.float32),
            "observed": jax.ShapeDtypeStruct(window, jnp.bool_),
            "marks": jax.ShapeDtypeStruct(marks, jnp.float32),
        }

    def inputs_of(self, raw: Any) -> Any:
        """Inputs from `values` [batch, lookback, channels], NaN where one is missing, and `time` [batch] of the first.

        values: in their own units; time: datetime64 or seconds since 1970. `observed`, of the same shape as values,
        says which of them were filled already, where that is known. Other than such a mapping is returned as it is.
        """
        if not (isinstance(raw, Mapping) and {"values", "time"} <= set(raw) <= {"values", "time", "observed"}):
            return raw
        values, first = np.asarray(raw["values"], np.float32), np.asarray(raw["time"])
        window = (self._config.lookback, len(self.metadata["channels"]))
        if values.shape[1:] != window or first.shape != values.shape[:1]:
            raise ConfigError(
                f"predict: values of shape {values.shape} and time of shape {first.shape} do not fit this model, which "
                f"takes (batch, {window[0]}, {window[1]}) and (batch,)"
            )
        if first.dtype.kind == "M":
            first = first.astype("datetime64[s]").astype(np.int64)
        steps = np.arange(self._config.lookback + self._config.horizon) * self.metadata["step"]
        observed = np.asarray(raw.get("observed", ~np.isnan(values)))
        # Where a channel has no value in the whole window, its mean in training.
        empty = np.isnan(values).all(axis=1, keepdims=True)
        values = np.where(empty, np.float32(self.metadata["mean"]), values)
        filled = np.stack([self.filled(each) for each in values])
        marks = calendar_marks((first[:, None] + steps[None]).ravel(), self.metadata["step"])
        observed = observed if self._config.missing == "mask" else np.ones_like(observed)
        return {
            "series": self._scaled(filled),
            "observed": observed,
            "marks": marks.reshape(len(values), len(steps), -1),
        }

    def facts(self) -> list[list[Any]]:
        channels, targets = self.metadata["channels"], [self.metadata["channels"][each] for each in self._targets]
        names = ", ".join(targets[:8]) + (" ..." if len(targets) > 8 else "")
        layout = self.layout
        tokens = f"{layout.tokens} of {layout.features} numbers"
        return [
            ["data set", self._config.dataset],
            ["channels", f"{len(channels)}, each {self.metadata['step']} seconds; predicted: {len(targets)} ({names})"],
            ["tokens", f"{tokens}, for each channel by itself" if layout.independent else tokens],
            *(["note", note] for note in self.metadata.get("notes", ())),
            *(() if self._has_scale else [["note", self._no_scale]]),
        ]


def shown_steps(horizon: int) -> tuple[int, ...]:
    """The steps of the horizon whose errors are reported, counted from 1."""
    return tuple(dict.fromkeys([1, *(max(1, horizon * part // SHOWN_STEPS) for part in range(1, SHOWN_STEPS + 1))]))


def _chosen(series: Series, config: ForecastingConfig, known: Sequence[str] | None) -> Series:
    """The channels that a run knows, or that `task.inputs` names, in its order; all by default."""
    for name in [name for name in known or () if name not in series.channels][:1]:
        raise DataError(
            f"{config.dataset} has no channel {name}, which this run was trained with; restore the file, or train a "
            "new run on it"
        )
    places = [_place(config, "inputs", name, series.channels) for name in known or config.inputs or series.channels]
    names = tuple(series.channels[place] for place in places)
    columns = tuple(series.columns[place] for place in places) if series.columns else ()
    return dataclasses.replace(series, channels=names, values=series.values[:, places], columns=columns)


def _place(config: ForecastingConfig, knob: str, name: str, known: tuple[str, ...]) -> int:
    """Where the channel is among those that are known.

    Raises:
        ConfigError: it is not there.
    """
    if name not in known:
        raise ConfigError(
            f"task.{knob}: {config.dataset} has no channel {name}: {nearest(name, known)}it has {', '.join(known)}"
        )
    return known.index(name)
