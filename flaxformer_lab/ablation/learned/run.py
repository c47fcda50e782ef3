"""An ablation of what is learned, cut by cut.

One row a cut and layer goes into the judge's file as soon as it is known, so that the same command goes on where it
stopped: the cosines of all rated pairs, or the nats of all passages. results.csv has what follows from them: each cut's
scores, and their differences from the intact model's.
"""

import contextlib
import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxformer_lab.ablation.learned.config import CONFIG, LearnedConfig
from flaxformer_lab.ablation.learned.cuts import left_out, make_cuts
from flaxformer_lab.ablation.learned.judges import Judge, make_judge
from flaxformer_lab.ablation.learned.measures import measure_rows
from flaxformer_lab.ablation.learned.parts import Parts
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.training.folder import is_foreign, read_json, write_atomic

COLUMNS = ("cut", "layer", "details")
RESULTS = "results.csv"


def run_cuts(
    config: LearnedConfig,
    workdir: Path,
    facts: Mapping[str, str],
    say: Callable[[str], None] = print,
    only: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Judges every cut that the folder does not have yet, and measures the model; returns the rows of its results.csv.

    facts: how this is made, for the last row. only: names of cuts, `measures` among them; all by default.

    Raises:
        ConfigError: the model or what it is judged by is not here, or the folder has results of another one.
        RunError: the folder holds something else, or cannot be written.
    """
    judge = make_judge(config)
    kept = workdir / judge.file
    with _reports_unwritable(workdir):
        _claim(workdir, config)
        rows = read_rows(kept) if kept.exists() else []
        write_atomic(kept, _as_csv(rows))  # without a line that a killed process left cut off
    known, parts = {(row["cut"], row["layer"]) for row in rows}, Parts(judge)
    for cut in make_cuts(parts, config.ranks):
        if (cut.name, cut.place) in known or (only and cut.name not in only):
            continue
        start = time.process_time()
        params = judge.model.params if cut.params is None else cut.params()
        row = {"cut": cut.name, "layer": cut.place, **judge.judge(cut.layers(), params)}
        rows.append(row)
        with _reports_unwritable(workdir), kept.open("a", encoding="utf-8", newline="") as file:
            _write_rows(file, [row])
        say(f"{cut.name}, layer {cut.place}: {time.process_time() - start:.1f} s of CPU time")
    if not any(row["cut"] == "measures" for row in rows) and (not only or "measures" in only):
        for row in measure_rows(parts):
            rows.append(row)
            say(f"measures, {row['layer']}")
        with _reports_unwritable(workdir):
            write_atomic(kept, _as_csv(rows))  # all measures or none: the folder does not say how many there are
    absent = left_out(judge.model.config, config.ranks)
    for name, reason in absent.items():
        say(f"{name}: left out, since {reason}")
    judged = judged_rows(rows, judge)
    judged += [{"cut": name, "layer": "all", "left_out": reason} for name, reason in absent.items()]
    judged.append({"cut": "provenance", "layer": "", "question": config.question, **facts})
    with _reports_unwritable(workdir):
        write_atomic(workdir / RESULTS, _as_csv(judged))
    return judged


@contextlib.contextmanager
def _reports_unwritable(workdir: Path) -> Iterator[None]:
    """Raises RunError where the system refuses to write."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{workdir} cannot be written: {error.strerror}; choose another --workdir") from error


def _claim(workdir: Path, config: LearnedConfig) -> None:
    """Writes what the folder's rows are of; they mean nothing beside those of another model or text."""
    asked = dataclasses.asdict(config)
    asked = {name: asked[name] for name in ("package", "folder", "dataset", "passages", "longest")}
    workdir.mkdir(parents=True, exist_ok=True)
    held, file = [*workdir.iterdir()], workdir / CONFIG
    if not file.exists() and any(is_foreign(path, CONFIG) for path in held):
        raise RunError(f"{workdir} holds files but no {CONFIG}, so it has no such results; choose another --workdir")
    found = read_json(file) if file.exists() else asked
    if found != asked:
        name = next(name for name in asked if found.get(name) != asked[name])
        raise ConfigError(
            f"{workdir} has results of learned.{name}={found.get(name)}, not of {asked[name]}; choose another --workdir"
        )
    write_atomic(file, json.dumps(asked, indent=2) + "\n")


def judged_rows(rows: Sequence[Mapping[str, Any]], judge: Judge) -> list[dict[str, Any]]:
    """Each cut's scores and their differences from the intact model's; measures as they are."""
    intact = next(row for row in rows if row["cut"] == "intact")
    return [
        dict(row)
        if row["cut"] == "measures"
        else {"cut": row["cut"], "layer": row["layer"], **judge.scores(intact, row)}
        for row in rows
    ]


def read_rows(results: Path, opener: Callable[..., Any] = open) -> list[dict[str, Any]]:
    """The rows of a file of results, without a last line that was cut off."""
    csv.field_size_limit(2**31 - 1)
    with opener(results, "rt", encoding="utf-8", newline="") as file:
        text = file.read()
    whole = io.StringIO(text[: text.rfind("\n") + 1])
    return [{"cut": row["cut"], "layer": row["layer"], **json.loads(row["details"])} for row in csv.DictReader(whole)]


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole file."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(COLUMNS)
    _write_rows(file, rows)
    return file.getvalue()


def _write_rows(file: io.TextIOBase, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each row."""
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        details = {name: value for name, value in row.items() if name not in COLUMNS}
        writer.writerow((row["cut"], row["layer"], json.dumps(details, separators=(",", ":"))))
