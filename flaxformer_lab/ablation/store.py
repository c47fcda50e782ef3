"""An ablation's folder: WORKDIR/ablation.json, cells/KEY.json for each finished cell, and the report's files.

A result is written as a whole or not at all. A cell in training is locked by its process; the lock ends with it.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxformer_lab.ablation.grid import Cell, Grid, parse_ablation, replicas_of
from flaxformer_lab.ablation.learned.config import CONFIG as LEARNED
from flaxformer_lab.config import as_dict, parse_config
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.literal_paths import local_folder
from flaxformer_lab.locking import file_lock
from flaxformer_lab.training.folder import is_foreign, read_json, write_atomic

Result = dict[str, Any]  # plain JSON


class Store:
    """The files of one ablation. Reading never executes and never unpickles what it finds."""

    def __init__(self, path: str | Path):
        self.path = local_folder(path)
        self._cells, self._config = self.path / "cells", self.path / "ablation.json"

    def claim(self, grid: Grid) -> None:
        """Makes the folder, or finds that it is an ablation's already.

        Another config may follow in the same folder: cells that both have are not trained again.

        Raises:
            RunError: the folder holds something else, or cannot be written.
        """
        try:
            if not self._is_ours():
                raise RunError(
                    f"{self.path} holds files but no ablation.json, so it is no ablation; choose another --workdir"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            _write(self._config, _grid_as_json(grid), indent=1)  # for readers; cells are large, and slow to write so
            self._cells.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}; choose another --workdir") from error

    def _is_ours(self) -> bool:
        """Whether the folder is an ablation's, or empty, or another process is beginning it, or was killed then."""
        # Listed before it is asked for the file: the other process may write it in between.
        held = [*self.path.iterdir()] if self.path.exists() else []
        return self._config.exists() or not any(is_foreign(path, self._config.name) for path in held)

    def read(self) -> Grid:
        """The grid that the folder belongs to.

        Raises:
            RunError: the folder is missing, or damaged.
        """
        if not self._config.exists() and (self.path / LEARNED).exists():
            raise RunError(
                f"{self.path} has cuts of a pretrained model ({LEARNED}) and no {self._config.name}; give the `ablate` "
                "command that made it again: it writes the report, and judges only what is missing"
            )
        if not self._config.exists():
            raise RunError(f"{self.path} has no ablation.json; give --workdir the folder of an ablation")
        tree = read_json(self._config)
        try:
            return _grid_from_json(tree)
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{self._config} is damaged or of another version: {error}") from error

    def result(self, cell: Cell) -> Result | None:
        """The result of a finished cell; None where it is not finished, or its file is damaged."""
        path = self._path(cell, "json")
        try:
            result = read_json(path)
        except RunError:
            return None
        return result if _is_result_of(cell, result) else None

    def failure(self, cell: Cell) -> str | None:
        """The last error of a cell that failed, in one line."""
        try:
            return str(read_json(self._path(cell, "failed.json"))["error"])
        except (RunError, KeyError):
            return None

    def finish(self, cell: Cell, result: Result) -> None:
        """Stores a cell's result.

        Raises:
            RunError: it cannot be written.
        """
        try:
            _write(self._path(cell, "json"), {"key": cell.key} | result)
            self._path(cell, "failed.json").unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{self._cells} cannot be written: {error.strerror}; make room for it") from error

    def fail(self, cell: Cell, error: str, details: str) -> None:
        """Stores the error that ended a cell."""
        with contextlib.suppress(OSError):
            record = {"task": cell.task, "variant": cell.variant, "error": error, "details": details}
            _write(self._path(cell, "failed.json"), record)

    @contextlib.contextmanager
    def locked(self, cell: Cell) -> Iterator[bool]:
        """Whether this process may train the cell in this context: it is not finished, and no other process has it."""
        with file_lock(self._path(cell, "lock")) as is_held:
            yield is_held and self.result(cell) is None

    def run_folder(self, cell: Cell, number: int) -> Path:
        """The folder in which a replica of a cell is kept as an ordinary run."""
        replica = cell.replicas[number]
        return self.path / "runs" / cell.key / f"seed-{replica.seed}-learning_rate-{replica.learning_rate:g}"

    def _path(self, cell: Cell, suffix: str) -> Path:
        return self._cells / f"{cell.key}.{suffix}"


def from_json(value: float | None) -> float:
    """A stored value: null stands for one that is not finite."""
    return float("nan") if value is None else value


def _write(path: Path, value: Any, indent: int | None = None) -> None:
    write_atomic(path, json.dumps(value, indent=indent) + "\n")


def _is_result_of(cell: Cell, result: Result) -> bool:
    """Whether it is what `finish` writes for this cell, with a number or null wherever a report needs one."""
    number = lambda value: value is None or isinstance(value, int | float)  # noqa: E731
    try:
        steps, replicas, bound = result["steps"], result["replicas"], result["bound"]
        pairs = [(each.seed, each.learning_rate) for each in cell.replicas]
        names = {tuple(tuple(each[table]) for table in ("validation", "test", "measures")) for each in replicas}
        curves = [curve for each in replicas for curve in each["validation"].values()]
        finals = [value for each in replicas for part in ("test", "measures") for value in each[part].values()]
        return (
            result["key"] == cell.key
            and [(each["seed"], each["learning_rate"]) for each in replicas] == pairs
            and (bound is None or (isinstance(bound["value"], int | float) and isinstance(bound["metric"], str)))
            and all(isinstance(result[name], int | float) for name in ("parameters", "forward_flops", "seconds"))
            and len(names) == 1
            and all(cell.primary_metric.name in each[split] for each in replicas for split in ("validation", "test"))
            and bool(curves)
            and all(isinstance(step, int) for step in steps)
            and all(len(curve) == len(steps) and all(map(number, curve)) for curve in curves)
            and all(map(number, finals))
            and all(map(_is_sums, result.get("test_examples", ())))
            and all(isinstance(each, str) for pair in result.get("provenance", {}).items() for each in pair)
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _is_sums(examples: Any) -> bool:
    """Whether these are sums over the seeds of one learning rate, for each test example."""
    totals, weights = examples["totals"], examples["weights"]
    return (
        isinstance(examples["learning_rate"], int | float)
        and len(totals) == len(weights) > 0
        and all(isinstance(each, int | float) and each > 0 for each in weights)
        and all(each is None or isinstance(each, int | float) for each in totals)
    )


def _grid_as_json(grid: Grid) -> dict[str, Any]:
    """Everything resolved, so that reading it needs no recipe."""
    return {
        "config": as_dict(grid.config),
        "cells": [
            {"task": c.task, "variant": c.variant, "config": as_dict(c.config)}
            | ({} if c.control is None else {"control": c.control})
            for c in grid.cells
        ],
        "dropped": [list(each) for each in grid.dropped],
    }


def _grid_from_json(tree: dict[str, Any]) -> Grid:
    stored = tree["config"]
    if any(isinstance(claim, str) for claim in stored["claims"]):  # earlier versions stored their names alone
        raise ConfigError(
            f"it only names its claims, {', '.join(map(str, stored['claims']))}; give the same `ablate` command again, "
            "which keeps all finished cells and stores the claims"
        )
    config = parse_ablation(stored)
    cells = tuple(
        Cell(
            each["task"],
            str(each["variant"]),
            parse_config(each["config"]),
            replicas_of(config, each["task"], str(each["variant"]), each.get("control")),
            control=each.get("control"),
        )
        for each in tree["cells"]
    )
    dropped = tuple((str(task), str(variant), str(why)) for task, variant, why in tree["dropped"])
    return Grid(config, cells, dropped)
