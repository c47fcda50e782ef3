"""results.csv, the open book of an ablation: everything that its report follows from, and the way back.

One row a replica; the rates that the grid of a cell grew by have an `extension` above 0. The first columns are for
people and their own analysis. `details` is JSON: the validation curves and all other figures of the replica, and in a
cell's first row what all its replicas share. So a report can be made again from the file, byte for byte, without any
training.
"""

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from flaxformer_lab.ablation.grid import Cell, Grid
from flaxformer_lab.ablation.rates import finished_parts, progress
from flaxformer_lab.ablation.store import Result, Store
from flaxformer_lab.errors import RunError
from flaxformer_lab.report.summary import Summary

RESULTS = "results.csv"
COLUMNS = (
    "task",
    "variant",
    "extension",
    "learning_rate",
    "seed",
    "chosen",
    "diverged",
    "metric",
    "validation",
    "test",
    "updates",
)
COLUMNS += ("parameters", "forward_flops", "details")
REPLICA = ("validation", "test", "measures")  # what each replica has of its own


def as_csv(grid: Grid, store: Store, summary: Summary) -> str:
    """One row a replica; a value that is not finite is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in grid.cells:
        score = summary.score(cell.task, cell.variant)
        for part, result in finished_parts(cell, store, grid.config) if score is not None else ():
            writer.writerows(_rows(part, result, score.learning_rate))
    return file.getvalue()


def _rows(cell: Cell, result: Result, chosen: float) -> Iterator[tuple[Any, ...]]:
    metric = cell.primary_metric.name
    left_out = {"task", "variant", "replicas", "seconds"}  # how long it took differs from run to run
    shared = {name: value for name, value in result.items() if name not in left_out}
    for number, each in enumerate(result["replicas"]):
        ends = each["validation"][metric][-1], each["test"][metric]
        details = {name: each[name] for name in REPLICA} | ({} if number else {"cell": shared})
        yield (
            cell.task,
            cell.variant,
            cell.extension,
            repr(each["learning_rate"]),
            each["seed"],
            str(each["learning_rate"] == chosen).lower(),
            str(None in ends).lower(),
            metric,
            *("" if value is None else repr(value) for value in ends),
            result["steps"][-1],
            result["parameters"],
            result["forward_flops"],
            json.dumps(details, separators=(",", ":")),
        )


def restore(path: Path, grid: Grid, store: Store) -> None:
    """Puts the results of a file (or of the folder that it is in; it may be gzipped) into an ablation's store.

    Raises:
        RunError: there is no such file, it is damaged, it holds no cell of the grid or one of another config, or the
            store has another result already.
    """
    file = next((each for each in _candidates(path) if each.is_file()), None)
    if file is None:
        raise RunError(f"--from_results={path} is no {RESULTS}, and no folder with one; name either")
    try:
        results = dict(_read(file))
    except (OSError, EOFError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise RunError(f"{file} is damaged or of another version: {type(error).__name__} {error}") from error
    found = 0
    for cell in grid.cells:
        part: Cell | None = cell
        while part is not None and (result := results.get((cell.task, cell.variant, part.extension))) is not None:
            _restore_part(file, part, result, store)
            part = progress(cell, store, grid.config)[1]
            found += 1
    if not found:
        raise RunError(f"{file} holds no cell of this ablation; give the --config that it belongs to")


def _restore_part(file: Path, part: Cell, result: Result, store: Store) -> None:
    """Puts the result of a cell, or of an extension, into the store."""
    name = f"{part.task} / {part.variant}"
    if result["key"] != part.key:
        raise RunError(
            f"{file} holds {name} as another config trained it; use the config and the version of the lab that its "
            "report names, or train it again"
        )
    known = store.result(part)
    if known is not None and _figures(known) != _figures(result):
        raise RunError(f"{store.path} holds another result of {name}; choose another --workdir")
    store.finish(part, result)
    if store.result(part) is None:
        raise RunError(f"{file} is damaged: what it says of {name} is no result")


def _figures(result: Result) -> Result:
    """What was found, without the time that it took, and without the names of the cell: another may have its key."""
    return {name: value for name, value in result.items() if name not in ("seconds", "task", "variant")}


def _candidates(path: Path) -> tuple[Path, ...]:
    return (path, path / RESULTS, path / f"{RESULTS}.gz")


def _read(file: Path) -> Iterator[tuple[tuple[str, str, int], Result]]:
    """The result of every cell and extension, by task, variant and number of the extension."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    part = lambda row: (row["task"], row["variant"], int(row["extension"]))  # noqa: E731
    for (task, variant, extension), rows in groupby(csv.DictReader(io.StringIO(text)), part):
        replicas, shared = [], {}
        for row in rows:
            details = json.loads(row["details"])
            shared |= details.pop("cell", {})
            replica = {"seed": int(row["seed"]), "learning_rate": float(row["learning_rate"])}
            replicas.append(replica | {name: details[name] for name in REPLICA})
        shared["key"]  # a cell without one is refused here
        yield (
            (task, variant, extension),
            {"task": task, "variant": variant, "seconds": 0.0} | shared | {"replicas": replicas},
        )
