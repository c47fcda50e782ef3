"""The files of a report: results.csv, report.md and report.html, of an ablation that has finished or is half way."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flaxformer_lab.ablation.grid import Grid
from flaxformer_lab.ablation.rates import progress
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.errors import RunError
from flaxformer_lab.report.claims import Decision, decide_all
from flaxformer_lab.report.formatting import (
    format_bound,
    format_findings,
    format_interval,
    format_learning_rate,
    format_p_value,
    format_steps_to_threshold,
)
from flaxformer_lab.report.page import as_page
from flaxformer_lab.report.summary import Score, Summary, summarise
from flaxformer_lab.training.folder import write_atomic

COLUMNS = ("task", "variant", "seed", "learning_rate", "chosen", "split", "step", "metric", "value")


@dataclass(frozen=True)
class Report:
    """The content of a report, and the files that it was written to."""

    summary: Summary
    decisions: tuple[Decision, ...]
    files: tuple[Path, ...]


def write_report(grid: Grid, store: Store) -> Report:
    """Writes results.csv, report.md and report.html into the ablation's folder.

    Raises:
        RunError: they cannot be written.
    """
    summary = summarise(grid, store)
    decisions = decide_all(summary)
    contents = {
        "results.csv": as_csv(grid, store, summary),
        "report.md": as_markdown(summary, decisions),
        "report.html": as_page(summary, decisions),
    }
    try:
        files = tuple(write_atomic(store.path / name, text) for name, text in contents.items())
    except OSError as error:
        raise RunError(f"{store.path} cannot be written: {error.strerror}; make room for it") from error
    return Report(summary, decisions, files)


def print_report(report: Report) -> None:
    """Prints the verdicts, and where the files are."""
    console = Console(highlight=False, soft_wrap=True)
    for decision in report.decisions:
        console.print(f"{decision.claim.name} {decision.verdict}: {decision.reason}", markup=False)
    for path in report.files:
        console.print(f"written: {path}", markup=False)


def as_csv(grid: Grid, store: Store, summary: Summary) -> str:
    """One row per replica, split, step and metric; measures of mixing have the split `measure`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in grid.cells:
        result, score = progress(cell, store, grid.config)[0], summary.score(cell.task, cell.variant)
        if result is None or score is None:
            continue
        last = result["steps"][-1]
        for each in result["replicas"]:
            rate = each["learning_rate"]
            head = (cell.task, cell.variant, each["seed"], repr(rate), str(rate == score.learning_rate).lower())
            for metric, values in each["validation"].items():
                for step, value in zip(result["steps"], values, strict=True):
                    writer.writerow((*head, "validation", step, metric, _exact(value)))
            for split, finals in (("test", each["test"]), ("measure", each["measures"])):
                for metric, value in finals.items():
                    writer.writerow((*head, split, last, metric, _exact(value)))
    return file.getvalue()


def as_markdown(summary: Summary, decisions: tuple[Decision, ...]) -> str:
    """The verdicts and a table for each task, for a README or a pull request."""
    parts = [f"# Ablation: {len(summary.scores)} of {len(summary.grid.cells)} cells\n"]
    if decisions:
        rows = [(d.claim.name, d.claim.statement, f"**{d.verdict}**", d.reason, format_findings(d)) for d in decisions]
        parts.append(table(("claim", "statement", "verdict", "because", "differences [95% interval]"), rows))
    for task in summary.grid.config.tasks:
        scores = [each for each in summary.scores if each.task == task]
        if scores:
            parts.append(f"## {task}\n\n{task_table(summary, scores)}")
    for cell, error in summary.failures:
        parts.append(f"Failed: {cell.task} / {cell.variant}: {error}")
    if summary.missing:
        parts.append(f"Not finished: {', '.join(f'{cell.task} / {cell.variant}' for cell in summary.missing)}.")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def task_table(summary: Summary, scores: list[Score]) -> str:
    """One row per variant of one task."""
    header = (
        "variant",
        f"{scores[0].metric.name} [95% interval]",
        "difference [95% interval]",
        "p (Holm)",
        "P(better)",
        "bound",
        "parameters",
        "FLOPs",
        "learning rate",
        "steps to threshold",
    )
    rows = []
    for score in scores:
        difference = summary.difference(score.task, score.variant)
        rows.append(
            (
                score.variant,
                format_interval(score.interval, score.metric.digits),
                "" if difference is None else format_interval(difference.interval, score.metric.digits, signed=True),
                "" if difference is None else format_p_value(difference.corrected_p),
                "" if difference is None else f"{difference.probability_of_improvement:.2f}",
                format_bound(score),
                f"{score.parameters:,}",
                f"{score.forward_flops:,}",
                format_learning_rate(score),
                format_steps_to_threshold(score),
            )
        )
    return table(header, rows)


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; bars and tags inside a cell are escaped, and a cell stays on its line."""
    lines = [header, ("---",) * len(header), *rows]
    escaped = [[" ".join(_escape(str(cell)).split()) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _escape(text: str) -> str:
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", text.replace("|", "\\|"))


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)
