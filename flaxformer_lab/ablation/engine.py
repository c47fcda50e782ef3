"""Trains the cells of a grid that are not finished, in this process or on a cluster, and stores their results.

A cell that another process trains is left to that process; one that fails is recorded, and the others continue.
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
from flaxformer_lab.ablation.provenance import provenance
from flaxformer_lab.ablation.store import Result, Store
from flaxformer_lab.tasks import PrimaryMetric, make_task

POLL_S = 0.5  # between two looks at cells that another process trains


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
# Takes waiting cells and locks them; yields each, while it is locked, with the call that returns its outcome or raises
# what went wrong. The listener gets the events of starts and of progress.
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
                seconds = _store_outcome(cell, outcome(), store, keep)
            except Exception as error:  # not KeyboardInterrupt, which ends the engine
                message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                store.fail(cell, message, traceback.format_exc())
                failed.add(cell.key)
                listen(Event("failed", cell, error=message))
            else:
                listen(Event("finished", cell, seconds=seconds))
        waiting = collections.deque(c for c in cells if store.result(c) is None and c.key not in failed)
        if waiting and not taken:
            time.sleep(POLL_S)


def _store_outcome(cell: Cell, outcome: Outcome, store: Store, keep: str) -> float:
    """Stores the result of a cell, and the replicas to keep; returns the seconds that it took."""
    result = result_of(cell, outcome)
    save_kept(cell, outcome, result, store, keep)
    store.finish(cell, result)
    return outcome.seconds


def result_of(cell: Cell, outcome: Outcome) -> Result:
    """An outcome as plain JSON; a value that is not finite becomes null."""
    parameters, flops = cost(cell.config)
    bound = make_task(cell.config.task).bound(cell.config.model)
    result = {
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
                "validation": {name: _as_json(values[number]) for name, values in outcome.validation.items()},
                "test": {name: _as_json(values[number]) for name, values in outcome.test.items()},
                "measures": {name: _as_json(values[number]) for name, values in outcome.measures.items()},
            }
            for number, replica in enumerate(outcome.replicas)
        ],
        "seconds": round(outcome.seconds, 2),
        "provenance": provenance(outcome.device),
    }
    return result | _test_examples(outcome, best_learning_rate(result, cell.primary_metric))


def _test_examples(outcome: Outcome, rate: float) -> Result:
    """What each test example adds to the score at the chosen rate, summed over seeds, where seeds share them."""
    if outcome.test_examples is None:
        return {}
    chosen = [number for number, replica in enumerate(outcome.replicas) if replica.learning_rate == rate]
    totals, weights = (_as_json(each) for each in outcome.test_examples[chosen].sum(axis=0))
    return {"test_examples": {"learning_rate": rate, "totals": totals, "weights": weights}}


def save_kept(cell: Cell, outcome: Outcome, result: Result, store: Store, keep: str) -> list[Path]:
    """Writes the replicas that `keep` names as ordinary runs; returns their folders."""
    if keep == "none":
        return []
    best = best_learning_rate(result, cell.primary_metric)
    folders = []
    for number, replica in enumerate(outcome.replicas):
        if keep == "all" or replica.learning_rate == best:
            folders.append(store.run_folder(cell, number))
            save_replica(cell.config, outcome, number, folders[-1])
    return folders


def best_learning_rate(result: Result, metric: PrimaryMetric) -> float:
    """The learning rate whose seeds have the best mean of the metric on validation at the end.

    One that diverged counts as the worst; of equals it is the smallest.
    """
    scores: dict[float, list[float]] = collections.defaultdict(list)
    for each in result["replicas"]:
        scores[each["learning_rate"]].append(from_json(each["validation"][metric.name][-1]))
    sign = 1 if metric.higher_is_better else -1
    means = {rate: sign * float(np.mean(values)) for rate, values in sorted(scores.items())}
    return max(means, key=lambda rate: means[rate] if np.isfinite(means[rate]) else -np.inf)


def from_json(value: float | None) -> float:
    """A stored value: null stands for one that is not finite."""
    return float("nan") if value is None else value


def _as_json(value: Any) -> Any:
    if np.ndim(value):
        return [_as_json(each) for each in value]
    return float(value) if np.isfinite(value) else None
