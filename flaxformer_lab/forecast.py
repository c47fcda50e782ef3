"""Forecasts a file with a trained model: `python -m flaxformer_lab.forecast --workdir=runs/load --csv=new.csv`.

The model reads the last `lookback` rows of the file and writes the `horizon` rows that follow, in the units of the
file: as CSV, and as a figure of what was before and what is forecast, with quantiles where the model has them.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Float, Int64

from flaxformer_lab.command_line import changes_of, parse_step, run
from flaxformer_lab.data.own.address import Address, parse_address
from flaxformer_lab.data.own.columns import Column
from flaxformer_lab.data.own.series import read_series
from flaxformer_lab.errors import ConfigError, DataError, RunError
from flaxformer_lab.predict import write_output
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.task_config import ForecastingConfig
from flaxformer_lab.training.logging import shown_while

SHOWN = 3  # horizons of history in the figure, at most


@dataclass(frozen=True)
class Forecast:
    """What follows the rows of a file, in its units.

    levels: of the quantiles, () for one number. time: seconds since 1970, in UTC where the file `has_zone`. notes: what
    a user should know of the file.
    """

    targets: tuple[str, ...]
    levels: tuple[float, ...]
    time: Int64[np.ndarray, " horizon"]
    values: Float[np.ndarray, "horizon targets levels"]  # one level where there are no quantiles
    past_time: Int64[np.ndarray, " rows"]
    past: Float[np.ndarray, "rows targets"]
    has_zone: bool
    notes: tuple[str, ...]

    def as_csv(self) -> str:
        """A row for each step: its time and each target, whose quantiles are columns `NAME 0.9`."""
        kinds = [f" {level:g}" for level in self.levels] or [""]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", *(name + kind for name in self.targets for kind in kinds)])
        for time, row in zip(self.time, self.values, strict=True):
            shown = str(np.datetime64(int(time), "s")).replace("T", " ") + ("+00:00" if self.has_zone else "")
            writer.writerow([shown, *(f"{x:.9g}" for x in row.ravel())])
        return file.getvalue()


def forecast(loaded: Run, path: str) -> Forecast:
    """The forecast from the last rows of a file.

    path: of a CSV or Parquet file, with options as in `task.dataset` (`new.csv?dates=NAME`).

    Raises:
        ConfigError: the run is no forecaster.
        DataError: the file lacks a channel of the model or is too short, time is not even, has another step, or has a
            time zone where that of training has none or the other way round, or a channel has no value in the rows that
            the model reads.
    """
    config = loaded.config.task
    if not isinstance(config, ForecastingConfig):
        raise ConfigError(f"forecast needs a model of task.name=forecasting; this run's task is {config.name}")
    channels, metadata = loaded.task.metadata["channels"], loaded.task.metadata
    known = metadata.get("columns", [{"name": name, "kind": "number"} for name in channels])
    series = read_series(_address(path), [Column.from_json(each) for each in known], metadata.get("has_zone"))
    if series.step != metadata["step"] and len(series.time) > 1:
        raise DataError(
            f"{path} has a row each {series.step} seconds, and the model was trained on one each {metadata['step']}; "
            "resample the file to that step"
        )
    if len(series.time) < config.lookback:
        raise DataError(
            f"{path} has {len(series.time):,} rows, and the model reads the last task.lookback={config.lookback}; give "
            "it more of the past"
        )
    values, read = series.values, slice(-config.lookback, None)
    window = values[read]
    for name, column in zip(channels, window.T, strict=True):
        if np.isnan(column).all():
            raise DataError(f"{path}: channel {name} has no value in its last {config.lookback} rows, which are read")
    # Gaps are filled from the whole file, as in training.
    given = {"values": loaded.task.filled(values)[read], "observed": ~np.isnan(window), "time": series.time[read][0]}
    found = np.asarray(loaded.predict({name: np.asarray(each)[None] for name, each in given.items()}))[0]
    found = np.sort(found, axis=-1) if config.quantiles else found[..., None]  # quantiles that cross change places
    steps = 1 + np.arange(config.horizon)
    targets = tuple(channels[place] for place in loaded.task.layout.targets)
    shown = SHOWN * config.horizon
    return Forecast(
        targets=targets,
        levels=config.quantiles,
        time=series.time[-1] + metadata["step"] * steps,
        values=found,
        past_time=series.time[-shown:],
        past=values[-shown:, list(loaded.task.layout.targets)],
        has_zone=series.has_zone,
        notes=series.notes,
    )


def _address(path: str) -> Address:
    """A path with options, whose kind may be left out."""
    kind = "parquet" if path.partition("?")[0].endswith(".parquet") else "csv"
    return parse_address(path if path.startswith(("csv:", "parquet:")) else f"{kind}:{path}")


def draw(found: Forecast, path: Path, title: str) -> None:
    """A panel for each target: history, forecast, and the quantiles as bands.

    Raises:
        RunError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import

    panels = len(found.targets)
    columns = 1 if panels < 4 else 2 if panels < 13 else 4
    rows = -(-panels // columns)
    figure = Figure(figsize=(2 + 7 * columns, 1 + 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    past, ahead = (each.astype("datetime64[s]") for each in (found.past_time, found.time))
    middle = found.levels.index(0.5) if found.levels else 0
    for number, (name, each) in enumerate(zip(found.targets, axes, strict=False)):
        values = found.values[:, number]
        each.plot(past, found.past[:, number], color="0.35", linewidth=1)
        for outer in range(middle):
            each.fill_between(ahead, values[:, outer], values[:, -1 - outer], color="C0", alpha=0.2, linewidth=0)
        each.plot(ahead, values[:, middle], color="C0", linewidth=1.5)
        each.set_title(name, loc="left", fontsize=9, parse_math=False)
        each.tick_params(labelsize=7)
    for each in axes[panels:]:
        each.set_axis_off()
    figure.suptitle(title, fontsize=10, parse_math=False)
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; choose another --output") from error


def main(overrides: list[str]) -> None:
    """Forecasts as the flags describe."""
    with shown_while("forecasting"):
        loaded = load_run(WORKDIR.value, parse_step(STEP.value), changes_of(overrides))
        found = forecast(loaded, CSV.value)
        name = Path(CSV.value.partition("?")[0].rpartition(":")[2]).stem
        path = Path(OUTPUT.value).expanduser() if OUTPUT.value else loaded.workdir / "forecasts" / f"{name}.csv"
        if path.suffix == ".svg":
            raise ConfigError(f"--output={path} is where the figure goes, beside the forecast; name a CSV file")
        write_output(path, found.as_csv(), source=_address(CSV.value).path)
        draw(found, path.with_suffix(".svg"), f"{name}: {len(found.time)} steps ahead, by {loaded.workdir.name}")
    for note in found.notes:
        print(f"note: {note}")
    for each in (path, path.with_suffix(".svg")):
        print(f"written: {each}")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    CSV = flags.DEFINE_string(
        "csv",
        None,
        "The file to go on from: CSV or Parquet, with a column of dates and the model's channels.",
        required=True,
    )
    OUTPUT = flags.DEFINE_string("output", None, "The file to write; default: WORKDIR/forecasts/NAME.csv.")
    STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, or best; default: the last one.")
    run(main)
