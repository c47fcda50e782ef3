"""Trains the cells of a grid that are not finished, in this process or on a cluster, and stores their results.

A cell that another process trains is left to that process; one that fails is recorded, and the others continue.
"""

import collections
import contextlib
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxformer_lab.ablation.grid import AblationConfig, Cell, Grid, cost
from flaxformer_lab.ablation.population import Outcome, save_replica
from flaxformer_lab.ablation.provenance import provenance
from flaxformer_lab.ablation.rates import best_learning_rate, finished_parts, joined, progress
from flaxformer_lab.ablation.store import Result, Store
from flaxformer_lab.data.own.address import CONTENT
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.tasks import make_task

POLL_S = 0.5  # between two looks at cells that another process trains


@dataclass(frozen=True)
class Event:
    """What happened to a cell: started, progress (done of total updates), finished, failed (with its error).

    following: the extension of its grid that a finished cell asks for.
    """

    what: str
    cell: Cell
    done: int = 0
    total: int = 0
    error: str = ""
    seconds: float = 0.0
    following: Cell | None = None


Listener = Callable[[Event], None]
# Takes waiting cells and locks them; yields each, while it is locked, with the call that returns its outcome or raises
# what went wrong. The listener gets the events of starts and of progress.
Trainer = Callable[[collections.deque[Cell], Store, Listener], Iterator[tuple[Cell, Callable[[], Outcome]]]]


def run_cells(grid: Grid, store: Store, listen: Listener, train: Trainer) -> None:
    """Returns when every cell is finished or has failed, through this engine or another one.

    A cell is finished when its best learning rate lies inside its grid, or the limit of extensions is reached.

    Raises:
        ConfigError: finished cells were trained on own files that have changed since.
    """
    _refuse_other_data(grid, store)
    bases = {cell.key: cell for cell in grid.cells}
    failed: set[str] = set()
    waiting = _waiting(grid, store, failed)
    while waiting:
        taken = 0
        for cell, outcome in train(waiting, store, listen):
            taken += 1
            try:
                base = bases[cell.base_key or cell.key]
                seconds = _store_outcome(cell, base, outcome(), store, grid.config)
            except Exception as error:  # not KeyboardInterrupt, which ends the engine
                message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                store.fail(cell, message, traceback.format_exc())
                failed.add(cell.key)
                listen(Event("failed", cell, error=message))
            else:
                following = progress(base, store, grid.config)[1]
                if following is not None:  # before others, while its program is there
                    waiting.appendleft(following)
                listen(Event("finished", cell, seconds=seconds, following=following))
        waiting = _waiting(grid, store, failed)
        if waiting and not taken:
            time.sleep(POLL_S)


def _refuse_other_data(grid: Grid, store: Store) -> None:
    """Raises ConfigError where cells of both contents would be compared."""
    contents: dict[str, str | None] = {}
    for cell in grid.cells:
        known = (store.result(cell) or {}).get("provenance", {}).get("data")
        if known is None:
            continue
        dataset = cell.config.task.dataset
        if dataset not in contents:
            contents[dataset] = known
            with contextlib.suppress(DataError):  # where the files are gone, what is finished can still be reported
                contents[dataset] = make_task(cell.config.task).metadata.get(CONTENT)
        if contents[dataset] != known:
            raise ConfigError(
                f"{store.path} was started with other data: {dataset} has changed since; restore the files, or choose "
                "another --workdir"
            )


def _waiting(grid: Grid, store: Store, failed: set[str]) -> collections.deque[Cell]:
    """What each cell needs next."""
    parts = (progress(cell, store, grid.config)[1] for cell in grid.cells)
    return collections.deque(part for part in parts if part is not None and part.key not in failed)


def _store_outcome(cell: Cell, base: Cell, outcome: Outcome, store: Store, config: AblationConfig) -> float:
    """Stores the result of a cell, and the replicas to keep; returns the seconds that it took."""
    result = result_of(cell, outcome)
    save_kept(cell, base, outcome, result, store, config)
    store.finish(cell, result)
    return outcome.seconds


def result_of(cell: Cell, outcome: Outcome) -> Result:
    """An outcome as plain JSON; a value that is not finite becomes null."""
    parameters, flops = cost(cell.config) if cell.control is None else (outcome.parameters, 0)
    task = make_task(cell.config.task)
    bound, content = None if cell.control else task.bound(cell.config.model), task.metadata.get(CONTENT)
    measures = outcome.measures | {name: outcome.test[name] for name in cell.primary_metric.beside}
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
                "measures": {name: _as_json(values[number]) for name, values in measures.items()},
            }
            for number, replica in enumerate(outcome.replicas)
        ],
        "seconds": round(outcome.seconds, 2),
        "provenance": provenance(outcome.device) | ({} if content is None else {"data": content}),
    }
    examples = [] if outcome.test_examples is None else _test_examples(outcome, outcome.test_examples, task.overlap)
    for name, values in outcome.beside_examples.items():
        examples += [{"metric": name} | each for each in _test_examples(outcome, values, task.overlap)]
    return result | {"test_examples": examples}


def _test_examples(
    outcome: Outcome, examples: Float[np.ndarray, "replicas 2 examples"], overlap: int
) -> list[dict[str, Any]]:
    """What each test example adds to a metric, by learning rate, summed over seeds.

    One that has no weight with any seed is left out: padding, or a text of which none hides a token. overlap: so many
    in a row are summed to one (the blocks of Carlstein 1986), since they share data.
    """
    rates = np.array([replica.learning_rate for replica in outcome.replicas])
    starts = np.arange(0, examples.shape[-1], overlap)
    blocks = np.add.reduceat(examples, starts, axis=-1) if overlap > 1 else examples
    sums = {float(rate): blocks[rates == rate].sum(axis=0) for rate in np.unique(rates)}
    counted = {rate: each[:, each[1] != 0] for rate, each in sums.items()}
    return [
        {"learning_rate": rate, "totals": _as_json(totals), "weights": _as_json(weights)}
        for rate, (totals, weights) in counted.items()
    ]


def save_kept(
    cell: Cell, base: Cell, outcome: Outcome, result: Result, store: Store, config: AblationConfig
) -> list[Path]:
    """Writes the replicas that `config.keep` names as ordinary runs; returns their folders.

    Those of a rate that is no longer the best are removed.
    """
    if config.keep == "none" or cell.control is not None:
        return []
    before = progress(base, store, config)[0] if cell.extension else None
    whole = result if before is None else joined([before, result])
    best = best_learning_rate(whole, cell.primary_metric, config.score_tolerance)
    folders = []
    for number, replica in enumerate(outcome.replicas):
        if config.keep == "all" or replica.learning_rate == best:
            folders.append(store.run_folder(cell, number))
            # A process that ended before it stored the cell may have left other values, as of another device.
            shutil.rmtree(folders[-1], ignore_errors=True)
            save_replica(cell.config, outcome, number, folders[-1])
    if config.keep == "chosen" and folders and cell.extension:
        for part, _ in finished_parts(base, store, config):
            for number, replica in enumerate(part.replicas):
                if replica.learning_rate != best:
                    shutil.rmtree(store.run_folder(part, number), ignore_errors=True)
    return folders


def _as_json(value: Any) -> Any:
    if np.ndim(value):
        return [_as_json(each) for each in value]
    return float(value) if np.isfinite(value) else None
