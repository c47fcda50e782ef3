"""Runs an ablation: `python -m flaxformer_lab.ablate --config=configs/ablations/cross_dimension.py --workdir=DIR`.

Trains variants x tasks x learning rates x seeds, all replicas of a pair in one compiled program, and ends in a report
with intervals and verdicts. The same command continues where an earlier one stopped; `--dry_run` shows what it would
do. A recipe of a pretrained model trains nothing: the model is cut (docs/pretrained.md).
"""

import contextlib
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from rich.console import Console

from flaxformer_lab.ablation.cluster import cluster
from flaxformer_lab.ablation.display import show_plan
from flaxformer_lab.ablation.engine import Trainer
from flaxformer_lab.ablation.grid import AblationConfig, make_grid, parse_ablation
from flaxformer_lab.ablation.learned.config import is_learned, parse_learned
from flaxformer_lab.ablation.local import train_here
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.api import dissect, raise_failures, run_grid
from flaxformer_lab.command_line import (
    PRINT_CONFIG,
    changes_of,
    command_alone,
    overridden,
    print_config,
    read_recipe,
    run,
    split_names,
)
from flaxformer_lab.compilation import available_cores, compile_small_programs_briefly
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.report.results import RESULTS, restore
from flaxformer_lab.report.write import print_report, write_report

command_alone(__name__)


def main(overrides: list[str]) -> None:
    """Runs what the flags describe."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)
    if RAY_ADDRESS.value and ENGINE.value != "ray":
        raise ConfigError(f"--ray_address={RAY_ADDRESS.value} needs --engine=ray")
    if FROM_RESULTS.value:
        _refuse("--from_results trains nothing", "engine", "loggers", "measure_again")
    # Both before anything asks for a device; a population spreads its replicas over the cores of a CPU too.
    compile_small_programs_briefly()
    with contextlib.suppress(RuntimeError):  # inside a process that has chosen its devices already
        jax.config.update("jax_num_cpu_devices", DEVICES.value or available_cores())
    written = _written_out(overrides)
    tree = read_recipe(CONFIG.value, changes_of(written))
    if is_learned(tree):
        _cut(overridden(tree, overrides))
        return
    tree = overridden(tree, written)
    if {"task", "model"} & tree.keys() and "tasks" not in tree:
        raise ConfigError(
            f"--config={CONFIG.value} is the recipe of one run: python -m flaxformer_lab.train --config={CONFIG.value} "
            "trains it; an ablation names it in tasks.NAME.recipe, as the files in configs/ablations do"
        )
    config = parse_ablation(tree)
    if MEASURE_AGAIN.value and not config.exports:
        raise ConfigError("--measure_again measures exported files, and this ablation has exports=false; leave it out")
    if PRINT_CONFIG.value:
        print_config(config)
        return
    grid = make_grid(config, Path(CONFIG.value).absolute().parent, read_recipe)
    console = Console(highlight=False, soft_wrap=True)
    store = Store(WORKDIR.value) if WORKDIR.value else None
    if DRY_RUN.value:
        show_plan(grid, store, console)
        return
    if store is None:
        raise ConfigError("--workdir is missing: name the folder for the results, like --workdir=runs/ablation")
    if FROM_RESULTS.value:
        store.claim(grid)
        restore(Path(FROM_RESULTS.value).expanduser(), grid, store)
        print_report(write_report(grid, store))
        return
    again = MEASURE_AGAIN.value
    report = run_grid(grid, store, _trainer(), console, split_names(LOGGERS.value), measure_again=again)
    print_report(report)
    raise_failures(report, store)


def _cut(tree: Mapping[str, Any]) -> None:
    """Cuts the pretrained model of a recipe, or prints its config."""
    reason = f"--config={CONFIG.value} cuts a pretrained model and trains nothing"
    _refuse(reason, "dry_run", "engine", "from_results", "loggers", "measure_again", "only")
    if PRINT_CONFIG.value:
        print_config(parse_learned(tree))
        return
    report = dissect(tree, WORKDIR.value)
    pictures = sorted(report.parent.glob(f"{report.stem}_*.svg"))
    for path in (report.with_name(RESULTS), report, report.with_suffix(".html"), *pictures):
        print(f"written: {path}")


def _refuse(reason: str, *names: str) -> None:
    """Raises ConfigError where one of these flags is given."""
    for name in names:
        if flags.FLAGS[name].value != flags.FLAGS[name].default:
            raise ConfigError(f"{reason}, so it takes no --{name}; leave it out")


def _written_out(overrides: list[str]) -> list[str]:
    """Short forms of two keys: `--config.claims=C1` names the claims to decide, `--only=TASK` the tasks to train."""
    written = [each.replace("--config.claims=", "--config.decide=", 1) for each in overrides]
    return written if ONLY.value is None else [*written, f"--config.only={ONLY.value}"]


def _trainer() -> contextlib.AbstractContextManager[Trainer]:
    if ENGINE.value == "local":
        return contextlib.nullcontext(train_here)
    return cluster(RAY_ADDRESS.value, DEVICES.value or 1)


def _end(number: int, frame: Any) -> NoReturn:
    del frame
    print("error: ended by a signal; finished cells are kept, and the same command does the rest", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    CONFIG = flags.DEFINE_string("config", None, "The ablation, a file of configs/ablations.", required=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the results.")
    FROM_RESULTS = flags.DEFINE_string(
        "from_results", None, "Make the report from a results.csv, or the folder it is in, and train nothing."
    )
    ONLY = flags.DEFINE_string("only", None, "Train these tasks alone: --only=product,delay is --config.only=...")
    DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show the cells, what they cost, and an estimate of the time.")
    ENGINE = flags.DEFINE_enum(
        "engine", "local", ["local", "ray"], "Where cells train: in this process, or as tasks of a Ray cluster."
    )
    RAY_ADDRESS = flags.DEFINE_string(
        "ray_address", None, "The cluster for --engine=ray, like auto or HOST:6379; default: one on this machine."
    )
    LOGGERS = flags.DEFINE_multi_string(
        "loggers",
        [],
        "Where the curves of all replicas go, as each cell is finished: tensorboard, csv, wandb, mlflow.",
    )
    MEASURE_AGAIN = flags.DEFINE_bool(
        "measure_again", False, "Where the ablation has exports=true: measure the files again, on a quiet machine."
    )
    DEVICES = flags.DEFINE_integer(
        "cpu_devices",
        None,
        "How many devices a CPU is shown as; default: its cores. With --engine=ray: the cores of each cell; default 1.",
        lower_bound=1,
    )
    run(main, AblationConfig, goes_on="finished cells are kept, and the same command does the rest")
