"""Time series."""

import itertools
from dataclasses import dataclass
from typing import Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, Name
from flaxformer_lab.task_config.base import TaskConfig


@dataclass(frozen=True)
class ForecastingConfig(TaskConfig):
    """The next `horizon` steps of a time series are predicted from the last `lookback` ones.

    Attributes:
        dataset: a `lab_*` series, a data set of tensorflow-datasets with `time` and channels, a file of your own
            with a column of dates (`csv:PATH`, `parquet:PATH`), or `ett:PATH`, a CSV in the layout of the ETT files,
            with their borders of 12, 4 and 4 months.
        lookback: steps that are read.
        horizon: steps that are predicted.
        inputs: names of the channels that are read; all by default.
        targets: names of the channels that are predicted; all that are read by default.
        missing: what becomes of missing values: the last value before takes their place in the inputs, and they do not
            count in loss and metrics (`mask`), or count as if observed (`forward`); or they are interpolated, from the
            future too, and count (`linear`).
        standardised: subtract each channel's mean and divide by its standard deviation, both of the training rows;
            errors are in this unit in any case.
        season: steps of a period, for the error of the seasonal naive forecast that MASE divides by; none means a day,
            or a week of days.
        loss: squared or absolute error.
        tokens: a token is a time step, a patch of steps, or a variate's whole lookback.
        patch_length: steps of a patch.
        patch_stride: steps from one patch to the next.
        patch_padding: repeat the last step `patch_stride` times first, so that no step is left out.
        channels: `mixed` puts all channels into a token, or all variates into a sequence; `independent` reads each
            channel by itself, with the same weights.
        marks: give the tokens the hour, weekday, day and month.
        instance_norm: what each window loses at the start and gets back at the end: nothing; its `last` value; mean and
            standard deviation (`revin`), or these with a learned scale and shift for each channel (`affine`).
        decomposition: sizes of moving averages, which are averaged and part every channel into season and trend, two
            numbers a step; none leaves the channels as they are.
        embedding: the map from a token's numbers to model.width; `identity` needs equal numbers of both.
        head: reads the tokens side by side, their mean, or the last one; a variate's token is read by itself.
        individual: a head for each channel instead of one for all; for variates or independent channels.
        label_length: steps of the window that a decoder is given before the horizon; for models with a decoder.
        quantiles: of every value to be forecast, like 0.1,0.5,0.9; trained by the pinball loss in place of task.loss,
            and 0.5 is the forecast itself. None forecasts one number.
        validation_stride: rows from one window of validation to the next; 1 takes all. Test takes all.
    """

    name: Literal["forecasting"] = "forecasting"
    dataset: Name = "lab_beijing_air"
    lookback: AtLeastOne = 96
    horizon: AtLeastOne = 96
    inputs: tuple[Name, ...] = ()
    targets: tuple[Name, ...] = ()
    missing: Literal["mask", "forward", "linear"] = "mask"
    standardised: bool = True
    season: AtLeastOne | None = None
    loss: Literal["mse", "mae"] = "mse"
    tokens: Literal["step", "patch", "variate"] = "step"
    patch_length: AtLeastOne = 16
    patch_stride: AtLeastOne = 8
    patch_padding: bool = True
    channels: Literal["mixed", "independent"] = "mixed"
    marks: bool = True
    instance_norm: Literal["off", "last", "revin", "affine"] = "off"
    decomposition: tuple[AtLeastOne, ...] = ()
    embedding: Literal["dense", "identity", "circular"] = "dense"
    head: Literal["flat", "mean", "last"] = "flat"
    individual: bool = False
    label_length: AtLeastOne = 48
    quantiles: tuple[float, ...] = ()
    validation_stride: AtLeastOne = 1

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.tokens == "patch" and self.patch_length > self.lookback + self.patch_padding * self.patch_stride:
            raise ConfigError(
                f"task.patch_length={self.patch_length} is more than task.lookback={self.lookback}; lower the one or "
                "raise the other"
            )
        if self.embedding == "circular" and (self.tokens != "step" or self.decomposition):
            raise ConfigError(
                f"task.embedding=circular is of steps and their neighbours, not of task.tokens={self.tokens} with "
                f"task.decomposition={self.decomposition}; set task.tokens=step and no decomposition, or dense"
            )
        levels = self.quantiles
        rise = all(low < high for low, high in itertools.pairwise((0.0, *levels, 1.0)))
        if levels and not (rise and 0.5 in levels):
            raise ConfigError(
                f"task.quantiles={','.join(map(str, levels))} must rise from above 0 to below 1, with 0.5 among them, "
                "like 0.1,0.5,0.9"
            )
        if levels and self.loss != "mse":
            raise ConfigError(
                f"task.loss={self.loss} with task.quantiles, which are trained by the pinball loss; leave one out"
            )
        if self.individual and self.tokens != "variate" and self.channels == "mixed":
            raise ConfigError(
                f"task.individual=true with task.tokens={self.tokens} and task.channels=mixed, where no token belongs "
                "to one channel; set task.channels=independent, or task.individual=false: each output has weights of "
                "its own there"
            )
