"""What a run reports: metrics.jsonl and loggers for machines, a progress line for people."""

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flaxformer_lab.errors import NonFiniteError, RunError
from flaxformer_lab.functional.metrics import Metrics, compute_by_step
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.folder import RunFolder, write_atomic
from flaxformer_lab.training.loggers import Entry, Logger

PATIENCE_S = 2.0  # what takes longer is shown


class MetricsLog:
    """Appends to metrics.jsonl (one object per line: step, split, name, value), and tells the loggers what is new.

    A run that resumes from step N drops what was written after N, and writes nothing a second time. Only one of several
    processes `writes`. What cannot be written to metrics.jsonl is a RunError.
    """

    def __init__(
        self,
        metrics: Path,
        loggers: contextlib.AbstractContextManager[Logger] | None = None,
        *,
        resumed_step: int,
        writes: bool = True,
    ):
        self._path, self._closing = metrics, contextlib.ExitStack()
        with self._explained():
            self._there = _drop_after(metrics, resumed_step) if writes else set()
            self._file = self._closing.enter_context(
                (metrics if writes else Path(os.devnull)).open("a", encoding="utf-8")
            )
        self._loggers = self._closing.enter_context(loggers) if loggers is not None and writes else None

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes one line per value."""
        new = {name: value for name, value in values.items() if (step, split, name) not in self._there}
        with self._explained():
            for name, value in new.items():
                self._file.write(json.dumps({"step": step, "split": split, "name": name, "value": value}) + "\n")
            self._file.flush()
        if new and self._loggers is not None:
            self._loggers.write(step, split, new)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{error.filename or self._path} cannot be written: {error.strerror}; checkpoints are untouched; "
                "make room or access and run the same command to resume"
            ) from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)


def read_metrics(metrics: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl; of one that is there twice, the last."""
    if not metrics.exists():
        return []
    entries = {}
    for line in metrics.read_bytes().splitlines():
        # A line cut short by a crash, or one that we have not written, is dropped.
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            if entry["step"] >= 0:
                entries[entry["step"], entry["split"], entry["name"]] = entry
    return list(entries.values())


def entries_of(metrics: Path) -> Iterator[Entry]:
    """What metrics.jsonl has, as loggers take it."""
    for each in read_metrics(metrics):
        yield each["step"], each["split"], {each["name"]: each["value"]}


def _drop_after(metrics: Path, step: int) -> set[tuple[int, str, str]]:
    """Keeps the whole lines of metrics.jsonl up to `step`; returns their (step, split, name)."""
    if not metrics.exists():
        return set()
    kept = [entry for entry in read_metrics(metrics) if entry["step"] <= step]
    write_atomic(metrics, "".join(json.dumps(entry) + "\n" for entry in kept))
    return {(entry["step"], entry["split"], entry["name"]) for entry in kept}


class Waiting:
    """A text that says for how long something has lasted, like "compiling 0:12", whenever it is shown.

    Where there is no terminal that shows it, it is one line, printed after two seconds.
    """

    def __init__(self, what: str, console: Console):
        self._what, self._begin = what, time.monotonic()
        self._timer = threading.Timer(PATIENCE_S, console.print, args=[what], kwargs={"markup": False})
        self._timer.daemon = True
        if not console.is_terminal:
            self._timer.start()

    def __str__(self) -> str:
        return f"{self._what} {duration(time.monotonic() - self._begin)}"

    __rich__ = __str__

    def close(self) -> None:
        """It is over: the line is not printed any more."""
        self._timer.cancel()


@contextlib.contextmanager
def shown_while(what: str) -> Iterator[None]:
    """Says on a terminal, and nowhere else, for how long the context has lasted."""
    console = Console(stderr=True)
    with console.status(Waiting(what, console)) if console.is_terminal else contextlib.nullcontext():
        yield


class Display:
    """Progress for people: a live bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, *, steps: int, units: tuple[str, int], batch_size: int, quiet: bool = False):
        self.console = Console(stderr=False, quiet=quiet, highlight=False, soft_wrap=True)
        self._units, self._per_step = units[0], units[1] * batch_size
        self._steps = steps
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._clock: tuple[float, int] | None = None  # when the first compiled call had ended, and its step
        self._last_line = 0.0

    @contextlib.contextmanager
    def training(self, start: int) -> Iterator[None]:
        """Shows progress from step `start` while the context lasts."""
        self._compiling = Waiting("compiling", self.console)
        self._task = self._bar.add_task("train", total=self._steps, completed=start, shown=self._compiling)
        with self._bar, contextlib.closing(self._compiling):
            yield

    def step(self, step: int, values: dict[str, float]) -> None:
        """Shows that `step` updates have been applied."""
        now = time.monotonic()
        if self._clock is None:
            self._clock = (now, step)
            self._compiling.close()
        seconds, steps = now - self._clock[0], step - self._clock[1]
        shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        if steps:
            rate = steps / seconds
            shown += f" | {rate:.1f} steps/s, {rate * self._per_step:,.0f} {self._units}/s"
        self._bar.update(self._task, completed=step, shown=shown)
        if not self.console.is_terminal and (now - self._last_line > 5 or step == self._steps):
            left = f", {duration((self._steps - step) * seconds / steps)} left" if steps and step < self._steps else ""
            self.console.print(f"step {step}/{self._steps} | {shown}{left}", markup=False)
            self._last_line = now

    def print(self, *lines: str) -> None:
        """Prints lines above the bar."""
        for line in lines:
            self.console.print(line, markup=False)

    def costs(self, parts: list[list[Any]], operations: list[list[Any]], devices: str) -> None:
        """Prints parameters by part, and operations."""
        self.table("parameters", ["part", "number"], parts)
        self.table(f"operations ({devices})", ["", "FLOPs"], operations)

    def facts(self, rows: list[list[Any]]) -> None:
        """Prints what a user should check of the data."""
        if rows:
            self.table("data", ["", "value"], rows)

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Prints a table; all columns but the first are numbers."""
        table = Table(title=escape(title), title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*(f"{cell:,}" if isinstance(cell, int) else escape(str(cell)) for cell in row))
        self.console.print(table)


class Record:
    """Logs and shows the values of a run, and ends it where one is not finite."""

    def __init__(self, experiment: Experiment, folder: RunFolder, log: MetricsLog, display: Display):
        self._fetch, self._folder, self._log, self._display = experiment.strategy.fetch, folder, log, display
        steps = jnp.arange(experiment.config.training.steps)
        self._learning_rates = jax.device_get(jax.vmap(experiment.schedule)(steps))

    def call(self, step: int, count: int, history: Metrics) -> None:
        """The `count` updates of a call that ended with `step`: their mean values."""
        by_step = compute_by_step(self._fetch(history), count)
        for offset, name in itertools.product(range(count), ("loss", "gradient_norm")):
            self._require_finite(name, float(by_step[name][offset]), step - count + offset + 1)
        values = {name: float(np.mean(each)) for name, each in by_step.items()}
        self._log.write(step, "train", values | {"learning_rate": float(self._learning_rates[step - 1])})
        self._display.step(step, {"loss": float(by_step["loss"][-1])})

    def evaluation(self, step: int, split: str, values: dict[str, float]) -> None:
        """The metrics of a split."""
        for name, value in values.items():
            self._require_finite(f"{split} {name}", value, step)
        self._log.write(step, split, values)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._display.print(f"step {step} | {split} {shown}")

    def _require_finite(self, name: str, value: float, step: int) -> None:
        if not np.isfinite(value):
            raise NonFiniteError(
                f"{name}={value} in update {step}; the run stops and saves nothing; checkpoints in "
                f"{self._folder.checkpoints} are untouched. Try a smaller optimizer.learning_rate, more "
                "optimizer.warmup_steps, or optimizer.clip_norm"
            )


def duration(seconds: int | float) -> str:
    """minutes:seconds, or hours:minutes:seconds from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
