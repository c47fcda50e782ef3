"""What the commands do, as functions of Python."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from flaxformer_lab import command_line
from flaxformer_lab.ablation.curves import entries_of, loggers_of
from flaxformer_lab.ablation.display import ProgressDisplay
from flaxformer_lab.ablation.engine import Event, Trainer, run_cells
from flaxformer_lab.ablation.exports import measure_exports, require_runs
from flaxformer_lab.ablation.grid import Grid, make_grid, parse_ablation
from flaxformer_lab.ablation.learned.config import parse_learned
from flaxformer_lab.ablation.learned.run import run_cuts
from flaxformer_lab.ablation.local import train_here
from flaxformer_lab.ablation.provenance import describe_devices, provenance
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.analysis.measures import Values
from flaxformer_lab.command_line import OVERRIDE, read_recipe, split_names
from flaxformer_lab.config import Config
from flaxformer_lab.errors import AblationError, ConfigError
from flaxformer_lab.export.onnx import require as require_onnx
from flaxformer_lab.functional.trees import replace_leaves
from flaxformer_lab.models.lora import merged
from flaxformer_lab.models.pretrained.folder import read_folder, write_folder
from flaxformer_lab.report.learned import write_learned
from flaxformer_lab.report.write import Report, write_report
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.tasks.pretrained import Pretrained
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.initialization import initial_weights
from flaxformer_lab.training.loggers import Callback, Logger, check_loggers
from flaxformer_lab.training.single import Single
from flaxformer_lab.training.state import State

# Keys of a model's config that say how training computes, not what the weights mean.
COMPUTED_AS = ("dropout", "dtype", "precision", "remat", "remat_policy")


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


def dissect(tree: Mapping[str, Any], workdir: str | Path | None) -> Path:
    """Cuts a pretrained model as a recipe like configs/ablations/pretrained.py says; returns the report's file.

    What is judged already stays: the same call goes on where an earlier one stopped. workdir: results.csv, report.md,
    report.html and figures go there.

    Raises:
        ConfigError: an invalid recipe, no workdir, or a model or ratings that are not installed.
    """
    config = parse_learned(tree)
    if workdir is None:
        raise ConfigError("--workdir is missing: name the folder for the results, like --workdir=runs/pretrained")
    folder = Path(workdir).expanduser().absolute()
    rows = run_cuts(config, folder, provenance(describe_devices()))
    write_learned(rows, folder, "report")
    return folder / "report.md"


def run_grid(
    grid: Grid,
    store: Store,
    trainer: contextlib.AbstractContextManager[Trainer],
    console: Console,
    loggers: Sequence[str | Logger | Callback] = (),
    callbacks: Sequence[Logger | Callback] = (),
    *,
    measure_again: bool = False,
) -> Report:
    """Trains the cells that are not finished, and writes the report, of failures too.

    measure_again: of what `config.exports` asks for, also what was measured already.
    """
    check_loggers(loggers, callbacks)
    if grid.config.exports:
        require_onnx()  # before anything is trained
    with trainer as train, contextlib.ExitStack() as stack:
        if grid.config.exports:
            require_runs(grid, store)
        store.claim(grid)
        log = stack.enter_context(loggers_of(grid, store, loggers, callbacks, quiet=console.quiet))
        display = stack.enter_context(ProgressDisplay(grid, store, console))

        def listen(event: Event) -> None:
            display(event)
            if event.what == "finished":
                for entry in entries_of(event.cell, store):
                    log.write(*entry)

        run_cells(grid, store, listen, train)
    if grid.config.exports:
        measure_exports(grid, store, again=measure_again, tell=console.print)
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


def pretrained_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """The config of a pretrained model's folder, which `train` fine-tunes; `changes` by dotted key.

    Raises:
        ConfigError, RunError: as in `load_pretrained`; an invalid change.
    """
    tree = {"task": {"name": "pretrained", "folder": str(path)}, "parallelism": {"strategy": "single"}}
    return load_config(tree, changes)


def load_pretrained(path: str | Path, changes: Mapping[str, Any] | None = None) -> Run:
    """A pretrained model as a run, from a folder as the Hugging Face hub has it, or one of sentence-transformers.

    Nothing is downloaded, executed or unpickled. changes: of its config by dotted key, like {"task.dataset": ...}.

    Raises:
        ConfigError: no such folder, code or pickles in it, another architecture or head than `ARCHITECTURES`, or a
            setting that our config cannot express.
        RunError: a damaged file.
    """
    experiment = make_experiment(pretrained_config(path, changes), strategy=Single())
    shapes, taken = experiment.network.shapes, initial_weights(experiment.config.training, experiment.abstract_state)
    params, model_state = shapes if not taken.drawn else experiment.network.init(jax.random.key(experiment.config.seed))
    params = jax.tree.map(jnp.asarray, replace_leaves(params, taken.values))
    return Run(experiment, State(jnp.zeros((), jnp.int32), params, model_state, ()), Path(path))


def save_pretrained(run: Run, path: str | Path) -> Path:
    """Writes a run that began as a pretrained model as a folder like the one that it came from; returns it.

    transformers reads it and gives the same outputs. LoRA's products are added to the weights. What the network does
    not use (a pooler) is copied. The folder that the run came from must still be there.

    Raises:
        ConfigError: the run is of another task, the folder exists and is not empty, or parameters that the files have
            no place for.
    """
    task = run.task
    if not isinstance(task, Pretrained):
        raise ConfigError(
            f"save_pretrained writes runs of task.name=pretrained, and this one is of {run.config.task.name}"
        )
    config = task.plan.config
    as_trained = {key: getattr(run.config.model, key) for key in COMPUTED_AS}
    if run.config.model != dataclasses.replace(config, **as_trained):
        raise ConfigError("save_pretrained: parts of the model were changed, which config.json cannot express")
    folder, classes = read_folder(run.config.task.folder), run.config.task.classes
    return write_folder(folder, merged(run.params), Path(path).expanduser(), classes)


def _opened(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else load_run(run)


def _as_text(value: Any) -> str:
    """As a command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
