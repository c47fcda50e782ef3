"""Scores new rows: `python -m flaxformer_lab.predict --workdir=runs/prices --csv=new.csv [--output=scores.csv]`.

Writes a CSV with a line for each row: its line in the file and what the model says, a number, or the class and the
probability of each. Where the file has the target too, its metrics are printed, as `python -m flaxformer_lab.evaluate
--csv=FILE` does. Of purchases, with the columns user, item, and basket or a time, it writes the ten best items for each
user.
"""

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from flaxformer_lab.command_line import changes_of, parse_step, run
from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.columns import Table
from flaxformer_lab.data.own.schema import table_of
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.functional import metrics
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.task_config import ForecastingConfig
from flaxformer_lab.training.folder import write_atomic
from flaxformer_lab.training.logging import Display, shown_while

CHUNK = 4096  # rows at once
TOP = 10  # items of a ranking that are written


@dataclass(frozen=True)
class Scores:
    """What a model says of each row of a file.

    lines: where a row begins in the file. columns: the task's `scores_of`. metrics: none where the target is not there.
    """

    lines: np.ndarray
    columns: dict[str, list]
    metrics: dict[str, float]

    def as_csv(self) -> str:
        """A line for each row."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["line", *self.columns])
        for line, *row in zip(self.lines, *self.columns.values(), strict=True):
            writer.writerow([line, *(f"{x:.9g}" if isinstance(x, float) else x for x in row)])
        return file.getvalue()


def predict(loaded: Run, path: str | Path) -> Scores:
    """What a model of a table says of the rows of a CSV or parquet file, and its metrics where the target is there.

    Raises:
        ConfigError: the run is no model of a table whose columns have names, or the file's columns are others.
        DataError: a file or a value that cannot be used.
    """
    task, config = loaded.task, loaded.config.task
    if hasattr(task, "histories_in"):
        return _ranked(loaded, table_of(path, parse_address(config.dataset)))
    if not getattr(task, "takes_rows", False):
        is_series = isinstance(config, ForecastingConfig)
        raise ConfigError(
            f"predict scores the rows of tables whose columns have names; this run's task is {config.name} of "
            f"{getattr(config, 'dataset', 'no data set')}; use "
            f"{'python -m flaxformer_lab.forecast' if is_series else 'run.predict of load_run in Python'}"
        )
    table = table_of(path, parse_address(config.dataset))
    targets = task.targets_in(table)
    states, parts = [], []
    for first in range(0, len(table), CHUNK):
        rows = slice(first, first + CHUNK)
        some = Table(table.path, {name: each[rows] for name, each in table.columns.items()}, table.lines[rows])
        some = dataclasses.replace(some, unit=table.unit)
        outputs = loaded.predict_preprocessed(task.inputs_of(some))
        parts.append(np.asarray(task.predictions_of(outputs)))
        if targets is not None:
            batch = {"targets": jnp.asarray(targets[rows]), "loss_weights": jnp.ones(len(some))}
            states.append(jax.device_get(task.loss_and_metrics(outputs, batch)))
    return Scores(table.lines, task.scores_of(np.concatenate(parts)), metrics.compute(states) if states else {})


def _ranked(loaded: Run, table: Table) -> Scores:
    """The best items for each user of a table of purchases; the line is that of the user's latest one."""
    histories, names = loaded.task.histories_in(table), loaded.task.metadata["items"]
    scores = np.asarray(loaded.task.predictions_of(loaded.predict_preprocessed(histories.inputs)))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    rows = [(user, row, rank) for row, user in enumerate(histories.users) for rank in range(best.shape[1])]
    columns = {
        "user": [user for user, _, _ in rows],
        "rank": [rank + 1 for _, _, rank in rows],
        "item": [names[best[row, rank]] for _, row, rank in rows],
        "score": [float(scores[row, best[row, rank]]) for _, row, rank in rows],
    }
    return Scores(np.repeat(histories.lines, best.shape[1]), columns, {})


def write(loaded: Run, path: str, output: str | None) -> tuple[Scores, Path]:
    """Scores a file and writes WORKDIR/predictions/NAME.csv, or `output`.

    Raises:
        ConfigError, DataError, RunError: as `predict` and `write_output`.
    """
    found = predict(loaded, path)
    target = Path(output).expanduser() if output else loaded.workdir / "predictions" / f"{Path(path).stem}.csv"
    write_output(target, found.as_csv(), source=Path(path).expanduser())
    return found, target


def write_output(target: Path, text: str, *, source: Path) -> None:
    """Writes what follows from the file `source`.

    Raises:
        ConfigError: the target is that file.
        RunError: it cannot be written.
    """
    try:
        if target.exists() and target.samefile(source):
            raise ConfigError(f"--output={target} is the file that was read; choose another --output")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text)
    except OSError as error:
        raise RunError(f"{target} cannot be written: {error.strerror}; choose another --output") from error


def main(overrides: list[str]) -> None:
    """Scores what the flags describe."""
    with shown_while("predicting"):
        loaded = load_run(WORKDIR.value, parse_step(STEP.value), changes_of(overrides))
        found, path = write(loaded, CSV.value, OUTPUT.value)
    if found.metrics:
        display = Display(steps=1, units=loaded.task.units, batch_size=1)
        rows = [[name, f"{value:.6f}"] for name, value in found.metrics.items()]
        display.table(f"{WORKDIR.value}, step {loaded.step}, {CSV.value}", ["metric", "value"], rows)
    print(f"written: {path}")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    CSV = flags.DEFINE_string("csv", None, "The rows to score, with the columns of the training table.", required=True)
    OUTPUT = flags.DEFINE_string("output", None, "The file to write; default: WORKDIR/predictions/NAME.csv.")
    STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, or best; default: the last one.")
    run(main)
