"""Trains cells as tasks of a Ray cluster (Moritz et al. 2018); a cell whose worker is lost is trained again.

The machine that runs the command writes all results: the others need no common folder, only the lab installed. A user's
own parts (`--import`) travel with each cell, as text.
"""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax

from flaxformer_lab import registry
from flaxformer_lab.ablation.engine import Event, Listener, Trainer
from flaxformer_lab.ablation.grid import Cell
from flaxformer_lab.ablation.local import make_population
from flaxformer_lab.ablation.population import Outcome, Replica, available_memory
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.compilation import compile_small_programs_briefly, use_compilation_cache
from flaxformer_lab.config import as_dict, parse_config
from flaxformer_lab.errors import ConfigError

Packed = tuple[
    dict[str, Any], tuple[Replica, ...], str | None, dict[str, str]
]  # config, ..., texts of the user's files
RETRIES = 10  # of a cell whose worker is lost
POLL_S = 0.2  # between two looks at progress


@contextlib.contextmanager
def cluster(address: str | None, cpus: int) -> Iterator[Trainer]:
    """The engine's `Trainer` on the cluster at `address` (as for `ray.init`), or on one that ends with the context.

    cpus: cores for each cell, whose population sees as many devices. Where the cluster has GPUs, each cell has one of
    them; where it has TPUs, each has those of a host.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at that address, or none of its machines is large enough.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine=ray needs Ray: pip install -e '.[ray]' in the lab's folder, on every machine"
        ) from error
    options = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if address:
            reason = f"--ray_address={address}: no cluster answers there ({reason}); start one: ray start --head"
        else:
            reason = f"--engine=ray: no cluster could be made on this machine ({reason}); give --ray_address of another"
        raise ConfigError(reason) from error
    try:
        most = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
        if cpus > most:
            raise ConfigError(
                f"--cpu_devices={cpus} cores for each cell, but the largest machine of the Ray cluster offers {most}; "
                f"choose at most {most}"
            )
        yield functools.partial(_train, ray, cpus)
    finally:
        ray.shutdown()


def _train(
    ray: ModuleType, cpus: int, waiting: collections.deque[Cell], store: Store, listen: Listener
) -> Iterator[tuple[Cell, Callable[[], Outcome]]]:
    with contextlib.ExitStack() as locks:
        cells = [cell for cell in waiting if locks.enter_context(store.locked(cell))]
        waiting.clear()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # On this machine, whose loss ends the command anyway.
        reports = ray.remote(Reports).options(num_cpus=0, scheduling_strategy=here).remote()
        task = ray.remote(train_cell).options(num_cpus=cpus, max_retries=RETRIES, **_accelerators(ray))
        running = {task.remote(number, _packed(cell), cpus, reports): cell for number, cell in enumerate(cells)}
        while running:
            finished, _ = ray.wait(list(running), timeout=POLL_S)
            for number, done, total in ray.get(reports.take.remote()):
                listen(Event("progress" if total else "started", cells[number], done, total))
            for reference in finished:
                yield running.pop(reference), functools.partial(_fetch, ray, reference)


def _packed(cell: Cell) -> Packed:
    """A cell as plain values, which a worker can read before it knows the parts that the config names."""
    return as_dict(cell.config), cell.replicas, cell.control, registry.imported_texts()


def _fetch(ray: ModuleType, reference: Any) -> Outcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _accelerators(ray: ModuleType) -> dict[str, Any]:
    """What each cell asks for beside cores."""
    if ray.cluster_resources().get("GPU"):
        return {"num_gpus": 1}
    chips = max(node["Resources"].get("TPU", 0) for node in ray.nodes())
    return {"resources": {"TPU": chips}} if chips else {}


class Reports:
    """An actor that holds the workers' reports of progress until they are fetched."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, int, int]] = []

    def add(self, number: int, done: int, total: int) -> None:
        """Cell `number` has so many of its updates; a total of 0 says that it has started."""
        self._reports.append((number, done, total))

    def take(self) -> list[tuple[int, int, int]]:
        """The reports since the last call."""
        reports, self._reports = self._reports, []
        return reports


def train_cell(number: int, packed: Packed, cpus: int, reports: Any) -> Outcome:
    """Trains one cell, in a worker."""
    tree, replicas, control, texts = packed
    for path, text in texts.items():
        registry.import_text(path, text)
    with contextlib.suppress(RuntimeError):  # a worker that has done a cell before has chosen its devices
        jax.config.update("jax_num_cpu_devices", cpus)
    use_compilation_cache()
    compile_small_programs_briefly()
    reports.add.remote(number, 0, 0)
    # Other workers of a machine have their shares of its memory.
    memory = available_memory() // (os.cpu_count() or 1) if jax.default_backend() == "cpu" else None
    population = make_population(parse_config(tree), control, replicas, memory=memory)
    return population.run(lambda done, total: reports.add.remote(number, done, total))
