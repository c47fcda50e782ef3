"""Works through a grid's cells in this process: the next one is compiled while this one trains.

Finished cells are in the store and are not done again; a cell that another process works on is left to it; one that
fails is recorded, and the rest goes on.
"""

import collections
import contextlib
import itertools
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxformer_lab.ablation.grid import Cell, cost
from flaxformer_lab.ablation.population import Outcome, Population, save_replica
from flaxformer_lab.ablation.statistics import chosen_rate
from flaxformer_lab.ablation.store import Result, Store
from flaxformer_lab.tasks import make_task

AHEAD = 1  # cells that are compiled before their turn
CELLS_A_CACHE = 10  # after so many cells JAX forgets their programs, which would fill the memory
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


def run_cells(cells: Sequence[Cell], store: Store, keep: str, listen: Listener) -> None:
    """Returns when every cell is finished or has failed, here or in another process."""
    waiting = collections.deque(cell for cell in cells if store.result(cell) is None)
    failed: set[str] = set()
    while waiting:
        taken = 0
        for cell, population in _prepared(waiting, store):
            taken += 1
            _run_one(cell, population, store, keep, listen, failed)
        waiting = collections.deque(c for c in cells if store.result(c) is None and c.key not in failed)
        if waiting and not taken:
            time.sleep(POLL)


def _prepared(waiting: collections.deque[Cell], store: Store) -> Iterator[tuple[Cell, futures.Future]]:
    """Each cell that nobody else works on, locked, with its population being compiled one turn ahead."""
    with contextlib.ExitStack() as stack:
        compiler = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")
        stack.callback(compiler.shutdown, wait=False, cancel_futures=True)
        ahead: collections.deque[tuple[Cell, futures.Future, contextlib.ExitStack]] = collections.deque()

        numbers = itertools.count(1)

        def prepare(cell: Cell) -> Population:
            if next(numbers) % CELLS_A_CACHE == 0:
                jax.clear_caches()
            return Population(cell.config, cell.replicas)

        def take() -> None:
            while waiting and len(ahead) <= AHEAD:
                cell, lock = waiting.popleft(), contextlib.ExitStack()
                if lock.enter_context(store.locked(cell)) and store.result(cell) is None:
                    stack.callback(lock.close)
                    ahead.append((cell, compiler.submit(prepare, cell), lock))
                else:
                    lock.close()

        take()
        while ahead:
            cell, population, lock = ahead.popleft()
            take()
            yield cell, population
            lock.close()


def _run_one(
    cell: Cell, population: futures.Future, store: Store, keep: str, listen: Listener, failed: set[str]
) -> None:
    start = time.perf_counter()
    listen(Event("started", cell))
    try:
        ready: Population = population.result()
        outcome = ready.run(lambda done, total: listen(Event("progress", cell, done, total)))
        result = result_of(cell, outcome, seconds=time.perf_counter() - start)
        save_kept(cell, outcome, result, store, keep)
        store.finish(cell, result)
    except Exception as error:  # an interruption is none, and ends the engine
        message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        store.fail(cell, message, traceback.format_exc())
        failed.add(cell.key)
        listen(Event("failed", cell, error=message))
    else:
        listen(Event("finished", cell, seconds=time.perf_counter() - start))


def result_of(cell: Cell, outcome: Outcome, *, seconds: float) -> Result:
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
        "seconds": round(seconds, 2),
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
