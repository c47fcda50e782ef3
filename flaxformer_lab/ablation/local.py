"""Trains cells in this process: the next ones are compiled while this one trains."""

import collections
import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax

from flaxformer_lab.ablation.engine import Event, Listener
from flaxformer_lab.ablation.fitted import Fitted
from flaxformer_lab.ablation.grid import Cell
from flaxformer_lab.ablation.population import Outcome, Population, Replica
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.compilation import available_cores
from flaxformer_lab.config import Config

# XLA compiles outside the interpreter's lock, about three programs of a cell at a time; tracing holds the lock.
CORES_A_CELL, MOST_AHEAD = 4, 3
CELLS_A_CACHE = 10  # after so many cells their programs are dropped, which would fill the memory

Prepared = Population | Fitted


def train_here(
    waiting: collections.deque[Cell], store: Store, listen: Listener
) -> Iterator[tuple[Cell, Callable[[], Outcome]]]:
    """A `Trainer` of the engine."""
    ahead_of_it = cells_ahead()
    with contextlib.ExitStack() as stack:
        compiler = futures.ThreadPoolExecutor(max_workers=ahead_of_it, thread_name_prefix="compile")
        stack.callback(compiler.shutdown, wait=False, cancel_futures=True)
        ahead: collections.deque[tuple[Cell, futures.Future[Prepared], contextlib.ExitStack]] = collections.deque()
        numbers = itertools.count(1)

        programs: dict[str, Prepared] = {}  # of the last cells, which their extensions use again
        bookkeeping = threading.Lock()

        def prepare(cell: Cell) -> Prepared:
            key = cell.base_key or cell.key
            with bookkeeping:
                known = programs.pop(key, None)
            if known is not None and len(known.replicas) == len(cell.replicas):
                population = known.with_replicas(cell.replicas)
            else:
                if cell.control is None and next(numbers) % CELLS_A_CACHE == 0:
                    jax.clear_caches()
                population = make_population(cell.config, cell.control, cell.replicas)
            with bookkeeping:
                programs[key] = population
                if len(programs) > ahead_of_it + 2:
                    del programs[next(iter(programs))]
            return population

        def take() -> None:
            while waiting and len(ahead) <= ahead_of_it:
                cell = waiting.popleft()
                with contextlib.ExitStack() as attempt:
                    if attempt.enter_context(store.locked(cell)):
                        lock = attempt.pop_all()  # kept for longer than this attempt
                        stack.callback(lock.close)
                        ahead.append((cell, compiler.submit(prepare, cell), lock))

        def outcome(cell: Cell, population: futures.Future[Prepared]) -> Outcome:
            ready = population.result()
            return ready.run(lambda done, total: listen(Event("progress", cell, done, total)))

        take()
        while ahead:
            cell, population, lock = ahead.popleft()
            take()
            listen(Event("started", cell))
            yield cell, functools.partial(outcome, cell, population)
            lock.close()
            take()  # an extension may wait since


def cells_ahead() -> int:
    """How many cells are compiled at a time while another one trains: one on two cores."""
    return max(1, min(available_cores() // CORES_A_CELL, MOST_AHEAD))


def make_population(config: Config, control: str | None, replicas: Sequence[Replica], **options: Any) -> Prepared:
    """What trains a cell's replicas (`options` as for `Population`), or fits them where a control takes their place."""
    if control is not None:
        return Fitted(config, control, replicas)
    return Population(config, replicas, **options)
