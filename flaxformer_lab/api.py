"""What the commands do, as functions of Python."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flaxformer_lab import command_line
from flaxformer_lab.ablation.curves import entries_of, loggers_of
from flaxformer_lab.ablation.display import ProgressDisplay
from flaxformer_lab.ablation.engine import Event, Trainer, run_cells
from flaxformer_lab.ablation.grid import Grid, make_grid, parse_ablation
from flaxformer_lab.ablation.local import train_here
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.analysis.measures import Values
from flaxformer_lab.command_line import OVERRIDE, read_recipe, split_names
from flaxformer_lab.config import Config
from flaxformer_lab.errors import AblationError
from flaxformer_lab.report.write import Report, write_report
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.training.loggers import Callback, Logger, check_loggers


def load_config(
    recipe: str | Path | Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
    *,
    ablation: str | Sequence[str] = (),
) -> Config:
    """The config of a recipe, like configs/digits.py, or of a mapping as a recipe returns it.

    changes: values by dotted key, {"training.steps": 200}. ablation: names of VARIANTS, "ffn_off,single_head".

    Raises:
        ConfigError: an invalid config, key or variant.
    """
    overrides = [f"{OVERRIDE}{key}={_as_text(value)}" for key, value in (changes or {}).items()]
    names = split_names([ablation] if isinstance(ablation, str) else ablation)
    return command_line.load_config(recipe if isinstance(recipe, Mapping) else str(recipe), overrides, names)


def evaluate(run: Run | str | Path, split: str = "test") -> dict[str, float]:
    """The metrics of a run, or of the run in a folder, on a split.

    Raises:
        RunError: the folder is missing, empty or damaged.
    """
    return _opened(run).evaluate(split)


def measure(run: Run | str | Path, names: Sequence[str] = (), **options: Any) -> Values:
    """The measures of a run, or of the run in a folder; options as in `Run.measure`.

    Raises:
        MeasureError: an unknown measure, or one that does not apply to this model.
        RunError: the folder is missing, empty or damaged.
    """
    return _opened(run).measure(names, **options)


def ablate(
    config: str | Path | Mapping[str, Any],
    workdir: str | Path,
    *,
    quiet: bool = False,
    loggers: Sequence[str | Logger | Callback] = (),
    callbacks: Sequence[Logger | Callback] = (),
) -> Report:
    """Trains what is not finished of an ablation, and writes its report.

    config: a file, like configs/ablations/cross_dimension.py, or a mapping as such a file returns it, whose recipes are
        relative to the working folder.
    loggers, callbacks: as in `train`, for the curves of each cell once it is finished; their splits are of replicas
        (`training.loggers.ReplicaSplit`).

    Raises:
        ConfigError: an invalid ablation.
        RunError: the folder holds something else, or cannot be written.
        AblationError: a cell failed; the others are finished, and the same call tries it again.
    """
    is_file = not isinstance(config, Mapping)
    tree, folder = (read_recipe(str(config)), Path(config).absolute().parent) if is_file else (config, Path.cwd())
    grid, store = make_grid(parse_ablation(tree), folder, read_recipe), Store(workdir)
    console = Console(highlight=False, soft_wrap=True, quiet=quiet)
    report = run_grid(grid, store, contextlib.nullcontext(train_here), console, loggers, callbacks)
    raise_failures(report, store)
    return report


def run_grid(
    grid: Grid,
    store: Store,
    trainer: contextlib.AbstractContextManager[Trainer],
    console: Console,
    loggers: Sequence[str | Logger | Callback] = (),
    callbacks: Sequence[Logger | Callback] = (),
) -> Report:
    """Trains the cells that are not finished, and writes the report, of failures too."""
    check_loggers(loggers, callbacks)
    with trainer as train, contextlib.ExitStack() as stack:
        store.claim(grid)
        log = stack.enter_context(loggers_of(grid, store, loggers, callbacks, quiet=console.quiet))
        display = stack.enter_context(ProgressDisplay(grid, store, console))

        def listen(event: Event) -> None:
            display(event)
            if event.what == "finished":
                for entry in entries_of(event.cell, store):
                    log.write(*entry)

        run_cells(grid, store, listen, train)
    return write_report(grid, store)


def raise_failures(report: Report, store: Store) -> None:
    """Raises AblationError where a cell failed."""
    if report.summary.failures:
        cell, error = report.summary.failures[0]
        raise AblationError(
            f"{len(report.summary.failures)} of {len(report.summary.grid.cells)} cells failed, the first {cell.task} / "
            f"{cell.variant}: {error}; details are in {store.path / 'cells'}/*.failed.json, and the same command "
            "tries them again"
        )


def _opened(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else load_run(run)


def _as_text(value: Any) -> str:
    """As a command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
