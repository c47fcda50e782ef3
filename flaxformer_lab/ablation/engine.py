"""Works through a grid's cells: those to do go to a trainer, in this process or on a cluster, and results to the store.

Finished cells are in the store and are not done again; a cell that another process works on is left to it; one that
fails is recorded, and the rest goes on.
"""

import collections
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flaxformer_lab.ablation.grid import Cell, cost
from flaxformer_lab.ablation.population import Outcome, save_replica
from flaxformer_lab.ablation.statistics import chosen_rate
from flaxformer_lab.ablation.store import Result, Store
from flaxformer_lab.tasks import make_task

POLL = 0.5  # seconds between two looks at cells that another process works on


@dataclass(frozen=True)
class Event:
    """What happened to a cell: started, progress (done of total updates), finished, failed (with its error)."""

    what: str
    cell: Cell
    done: int = 0
    total: int = 0
    error: str = ""
    seconds: float = 0.0


Listener = Callable[[Event], None]
# Takes waiting cells and locks them; yields each, while it is locked, with the call that returns what became of it or
# raises what went wrong. The listener hears of starts and of progress.
Trainer = Callable[[collections.deque[Cell], Store, Listener], Iterator[tuple[Cell, Callable[[], Outcome]]]]


def run_cells(cells: Sequence[Cell], store: Store, keep: str, listen: Listener, train: Trainer) -> None:
    """Returns when every cell is finished or has failed, through this engine or another one."""
    waiting = collections.deque(cell for cell in cells if store.result(cell) is None)
    failed: set[str] = set()
    while waiting:
        taken = 0
        for cell, outcome in train(waiting, store, listen):
            taken += 1
            try:
                seconds = _settle(cell, outcome(), store, keep)
            except Exception as error:  # an interruption is none, and ends the engine
                message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                store.fail(cell, message, traceback.format_exc())
                failed.add(cell.key)
                listen(Event("failed", cell, error=message))
            else:
                listen(Event("finished", cell, seconds=seconds))
        waiting = collections.deque(c for c in cells if store.result(c) is None and c.key not in failed)
        if waiting and not taken:
            time.sleep(POLL)


def _settle(cell: Cell, outcome: Outcome, store: Store, keep: str) -> float:
    """Stores a finished cell; returns its seconds."""
    result = result_of(cell, outcome)
    save_kept(cell, outcome, result, store, keep)
    store.finish(cell, result)
    return outcome.seconds


def result_of(cell: Cell, outcome: Outcome) -> Result:
    """An outcome as plain JSON; a figure that is not finite becomes null."""
    parameters, flops = cost(cell.config)
    bound = make_task(cell.config.task).bound(cell.config.model)
    return {
        "task": cell.task,
        "variant": cell.variant,
        "parameters": parameters,
        "forward_flops": flops,
        "bound": None if bound is None else vars(bound),
        "steps": list(outcome.steps),
        "replicas": [
            {
                "seed": replica.seed,
                "learning_rate": replica.learning_rate,
                "validation": {name: _plain(values[number]) for name, values in outcome.validation.items()},
                "test": {name: _plain(values[number]) for name, values in outcome.test.items()},
                "measures": {name: _plain(values[number]) for name, values in outcome.measures.items()},
            }
            for number, replica in enumerate(outcome.replicas)
        ],
        "seconds": round(outcome.seconds, 2),
    }


def save_kept(cell: Cell, outcome: Outcome, result: Result, store: Store, keep: str) -> list[Path]:
    """Writes the replicas that `keep` names as ordinary runs; returns their folders."""
    if keep == "none":
        return []
    best = best_rate(result)
    folders = []
    for number, replica in enumerate(outcome.replicas):
        if keep == "all" or replica.learning_rate == best:
            folders.append(store.run_folder(cell, number))
            save_replica(cell.config, outcome, number, folders[-1])
    return folders


def primary_metric(names: Sequence[str]) -> tuple[str, bool]:
    """The figure that a task is judged by, and whether more of it is better."""
    for name in ("r2", "accuracy"):
        if name in names:
            return name, True
    return "loss", False


def best_rate(result: Result) -> float:
    """The learning rate that was best on validation at the end; a replica that diverged counts as the worst."""
    metric, higher = primary_metric(list(result["replicas"][0]["validation"]))
    by_rate: dict[float, list[float]] = collections.defaultdict(list)
    for each in result["replicas"]:
        by_rate[each["learning_rate"]].append(number(each["validation"][metric][-1]))
    return chosen_rate(by_rate, higher_is_better=higher)


def number(value: float | None) -> float:
    """A stored figure: null stands for one that is not finite."""
    return float("nan") if value is None else value


def _plain(value: Any) -> Any:
    if np.ndim(value):
        return [_plain(each) for each in value]
    return float(value) if np.isfinite(value) else None
