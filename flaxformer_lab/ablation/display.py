"""What an ablation shows while it works: the plan before, live progress during, and a line for each cell."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flaxformer_lab.ablation.engine import Event
from flaxformer_lab.ablation.grid import Cell, Grid, cost
from flaxformer_lab.ablation.population import Population
from flaxformer_lab.ablation.rates import progress
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.training.logging import Waiting, duration

LINE_EVERY_S = 60.0  # between two lines while one cell trains, where there is no terminal
TRIAL_STEPS = 20  # updates of one cell from which the time of all is estimated


class ProgressDisplay:
    """Shows the engine's events: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, grid: Grid, store: Store, console: Console):
        self._console, self._all = console, len(grid.cells)
        waiting = [cell for cell in grid.cells if progress(cell, store, grid.config)[1] is not None]
        self._done = self._all - len(waiting)
        self._updates = sum(cell.config.training.steps for cell in waiting)
        self._updates_done, self._start = 0, time.monotonic()
        self._last_line = self._start
        self._parts: dict[str, float] = {}  # of the cells in training, on a cluster several
        self._bar = Progress(
            TextColumn("cells"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[shown]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "ProgressDisplay":
        if self._done:
            self._print(f"{self._done} of {self._all} cells are finished already")
        self._compiling = Waiting("compiling", self._console)
        self._task = self._bar.add_task("cells", total=self._all, completed=self._done, shown=self._compiling)
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._compiling.close()
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        cell = event.cell
        name = f"{cell.task} / {cell.variant}"
        if event.what != "started":
            self._compiling.close()
        if event.what == "progress":
            self._parts[cell.key] = event.done / max(event.total, 1)
            shown = f"{name}, update {event.done} of {event.total}"
            self._bar.update(self._task, completed=self._done + sum(self._parts.values()), shown=shown)
            if not self._console.is_terminal and time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._print(f"     {shown}")
        elif event.what == "finished" and event.following is not None:
            self._updates += cell.config.training.steps
            self._count_finished(cell, whole=False)
            self._print(f"     {name}: {event.seconds:.1f} s; goes on with {_what_follows(event.following)}")
        elif event.what == "finished":
            self._count_finished(cell)
            self._print(f"{self._done}/{self._all} {name}: {event.seconds:.1f} s{self._remaining()}")
        elif event.what == "failed":
            self._count_finished(cell)
            self._print(f"{self._done}/{self._all} {name} FAILED: {event.error}")

    def _count_finished(self, cell: Cell, *, whole: bool = True) -> None:
        self._done += whole
        self._parts.pop(cell.key, None)
        self._updates_done += cell.config.training.steps
        self._bar.update(self._task, completed=self._done + sum(self._parts.values()))

    def _remaining(self) -> str:
        passed = time.monotonic() - self._start
        seconds = passed / max(self._updates_done, 1) * (self._updates - self._updates_done)
        return f", about {duration(seconds)} left" if seconds >= 1 else ""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)
        self._last_line = time.monotonic()


def show_plan(grid: Grid, store: Store | None, console: Console) -> None:
    """Prints the cells with parameters and FLOPs, the pairs that were dropped, and an estimate of the time."""
    table = Table(title=f"{len(grid.cells)} cells x {len(grid.cells[0].replicas)} replicas", title_justify="left")
    for column in ("task", "variant", "parameters", "forward FLOPs", "updates", "state"):
        table.add_column(column, justify="right" if column in ("parameters", "forward FLOPs", "updates") else "left")
    work: list[tuple[Cell, float, int]] = []  # with the operations of one replica, and the replicas to train
    for cell in grid.cells:
        parameters, flops = cost(cell.config) if cell.control is None else (0, 0)
        finished = store is not None and progress(cell, store, grid.config)[1] is None
        training = cell.config.training
        if not finished and cell.control is None:
            others = set(grid.config.seeds_of(cell.task)) - {replica.seed for replica in cell.replicas}
            operations = 3.0 * flops * training.batch_size * training.steps
            work.append((cell, operations, len(cell.replicas) + len(others)))
        row = (cell.task, cell.variant, f"{parameters:,}", f"{flops:,}", f"{training.steps:,}")
        table.add_row(*map(Text, row), "finished" if finished else "to do")
    console.print(table)
    for task, variant, why in grid.dropped:
        console.print(f"left out: {task} / {variant}: {why}", markup=False)
    if work:
        console.print("compiling one of them, and timing its updates, for an estimate", markup=False)
        console.print(_estimate(work), markup=False)
        more = f"up to {grid.config.max_extensions} times as many replicas again"
        console.print(f"where the best learning rate lies at an edge of its grid, {more}", markup=False)


def _what_follows(extension: Cell) -> str:
    """More rates, or the seeds that did not search."""
    rates = sorted({replica.learning_rate for replica in extension.replicas})
    if len(rates) > 1:
        return f"rates from {rates[0]:g} to {rates[-1]:g}"
    return f"{len(extension.replicas)} more seeds at {rates[0]:g}"


def _estimate(work: list[tuple[Cell, float, int]]) -> str:
    """From a trial of the cell in the middle: what compiling takes, and the rate of operations."""
    cell, operations, _ = sorted(work, key=lambda each: each[1] * each[2])[len(work) // 2]
    start = time.perf_counter()
    population = Population(cell.config, cell.replicas)
    compiling = time.perf_counter() - start
    training = population.seconds_per_update(TRIAL_STEPS) * cell.config.training.steps
    rate = operations * len(cell.replicas) / training
    seconds = compiling * len(work) + sum(each * replicas for _, each, replicas in work) / rate
    return (
        f"estimate: {duration(seconds)} (compiling {compiling:.1f} s a cell and {rate / 1e9:.1f} GFLOP/s, "
        f"from a trial of {cell.task} / {cell.variant}; compiling overlaps with training, so expect less)"
    )
