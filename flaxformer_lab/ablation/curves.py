"""The curves of an ablation's replicas, as loggers take them.

A cell is logged as a whole when it is finished: training many replicas in one program is not held up by their rows.
"""

from collections.abc import Iterator, Sequence

from flaxformer_lab.ablation.grid import Cell, Grid
from flaxformer_lab.ablation.rates import finished_parts
from flaxformer_lab.ablation.store import Store, from_json
from flaxformer_lab.config import as_dict
from flaxformer_lab.training.loggers import Callback, Destination, Entry, Logger, Loggers, ReplicaSplit


def loggers_of(
    grid: Grid,
    store: Store,
    loggers: Sequence[str | Logger | Callback],
    callbacks: Sequence[Logger | Callback] = (),
    *,
    quiet: bool = False,
) -> Loggers:
    """All loggers of an ablation, to be entered once its folder is claimed."""

    def entries() -> Iterator[Entry]:
        for cell in grid.cells:
            for part, _ in finished_parts(cell, store, grid.config):
                yield from entries_of(part, store)

    destination = Destination(store.path, as_dict(grid.config), entries, is_ablation=True, quiet=quiet)
    return Loggers(loggers, callbacks, destination)


def entries_of(cell: Cell, store: Store) -> Iterator[Entry]:
    """What a finished cell has of each replica: validation by step, and test and measures at the end."""
    result = store.result(cell)
    for each in result["replicas"] if result else ():
        split = lambda name, each=each: ReplicaSplit(  # noqa: E731
            cell.task, cell.variant, each["learning_rate"], each["seed"], name
        )
        for number, step in enumerate(result["steps"]):
            values = {name: from_json(curve[number]) for name, curve in each["validation"].items()}
            yield step, split("validation"), values
        for name in ("test", "measures"):
            if each[name]:
                yield result["steps"][-1], split(name), {key: from_json(value) for key, value in each[name].items()}
