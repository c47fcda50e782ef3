"""The files of a report: results.csv, report.md and report.html, of an ablation that has finished or is half way."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flaxformer_lab.ablation.grid import Grid
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.errors import RunError
from flaxformer_lab.report.claims import Decision, decide_all
from flaxformer_lab.report.designs import factorial, front_families
from flaxformer_lab.report.formatting import (
    COSTS_OF_USE,
    TITLE,
    effects_in_words,
    format_bound,
    format_clarity,
    format_cost_of_use,
    format_errors,
    format_errors_of_scores,
    format_findings,
    format_improvement,
    format_interval,
    format_learning_rate,
    format_p_value,
    format_provenance,
    format_reach,
    format_reasons,
    format_share,
    format_steps_to_threshold,
    lead,
)
from flaxformer_lab.report.page import as_page
from flaxformer_lab.report.results import RESULTS, as_csv
from flaxformer_lab.report.summary import Score, Summary, intervals_beside, summarise
from flaxformer_lab.training.folder import write_atomic


@dataclass(frozen=True, repr=False)
class Report:
    """The content of a report, and the files that it was written to."""

    summary: Summary
    decisions: tuple[Decision, ...]
    files: tuple[Path, ...]

    def __repr__(self) -> str:
        verdicts = "".join(f", {each.claim.name} {each.verdict}" for each in self.decisions)
        return f"Report({len(self.summary.scores)} of {len(self.summary.grid.cells)} cells{verdicts}; {self.files[-1]})"


def write_report(grid: Grid, store: Store) -> Report:
    """Writes results.csv, report.md and report.html into the ablation's folder.

    Raises:
        RunError: they cannot be written.
    """
    summary = summarise(grid, store)
    decisions = decide_all(summary)
    contents = {
        RESULTS: as_csv(grid, store, summary),
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


def as_markdown(summary: Summary, decisions: tuple[Decision, ...]) -> str:
    """The verdicts and a table for each task, for a README or a pull request."""
    parts = [f"# {summary.grid.config.question or TITLE}", lead(summary, decisions)]
    anchors = {task: f"table-{number}" for number, task in enumerate(summary.grid.config.tasks, 1)}
    if decisions:
        header = ("claim", "statement", "verdict", "because", "differences [95% interval]", "tables")
        parts.append(table(header, [_verdict_row(each, anchors) for each in decisions]))
        parts += ["How far each verdict reaches:", "\n".join(_reach(each) for each in decisions)]
    for task in summary.grid.config.tasks:
        scores = [each for each in summary.scores if each.task == task]
        if scores:
            parts.append(f'<a id="{anchors[task]}"></a>\n\n## {task}\n\n{task_table(summary, scores)}')
            parts.append(format_errors_of_scores(scores))
            families = front_families(summary, task)
            if families:
                parts += ["Cost of use, as exported files, family by family:", _cost_table(families)]
            crossed = factorial(summary, task)
            parts += [] if crossed is None else [effects_in_words(crossed)]
    parts += [f"{name.capitalize()}: {made}" for name, made in format_provenance(summary)]
    for cell, error in summary.failures:
        parts.append(f"Failed: {cell.task} / {cell.variant}: {error}")
    if summary.missing:
        parts.append(f"Not finished: {', '.join(f'{cell.task} / {cell.variant}' for cell in summary.missing)}.")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _verdict_row(decision: Decision, anchors: dict[str, str]) -> tuple[str, ...]:
    """One claim, with links to the tables that it rests on."""
    tasks = dict.fromkeys(quantity.task for _, quantity in decision.claim.quantities)
    names = {task: re.sub(r"([][])", r"\\\1", task) for task in tasks}
    links = [f"[{names[task]}](#{anchors[task]})" for task in tasks if task in anchors]
    claim, verdict = decision.claim, f"**{decision.verdict}**"
    return claim.name, claim.statement, verdict, decision.reason, format_findings(decision), ", ".join(links)


def _reach(decision: Decision) -> str:
    """One claim: at equal FLOPs, with other thresholds, and why the thresholds are what they are."""
    said = format_errors(decision), *format_reach(decision), format_reasons(decision)
    return " ".join(filter(None, (f"- {decision.claim.name}.", *said)))


def task_table(summary: Summary, scores: list[Score]) -> str:
    """One row per variant of one task."""
    header = (
        "variant",
        *(f"{name} [95% interval]" for name in (scores[0].metric.name, *scores[0].metric.beside)),
        "difference [95% interval]",
        "p (Holm)",
        "verdict",
        "P(better) [95% interval]",
        "difference at equal FLOPs [95% interval]",
        "bound",
        "parameters",
        "FLOPs",
        "learning rate",
        "seeds at threshold [95% interval]",
        "steps to threshold",
    )
    has_threshold = summary.grid.config.tasks[scores[0].task].threshold is not None
    rows = []
    for score in scores:
        difference = summary.difference(score.task, score.variant)
        rows.append(
            (
                score.variant,
                format_interval(score.interval, score.metric.digits),
                *(format_interval(each, score.metric.digits) for each in intervals_beside(score)),
                "" if difference is None else format_interval(difference.interval, score.metric.digits, signed=True),
                "" if difference is None else format_p_value(difference.corrected_p),
                "" if difference is None else format_clarity(difference),
                "" if difference is None else format_improvement(difference),
                ""
                if difference is None or difference.at_equal_flops is None
                else format_interval(difference.at_equal_flops, score.metric.digits, signed=True),
                format_bound(score),
                f"{score.parameters:,}",
                f"{score.forward_flops:,}",
                format_learning_rate(score),
                format_share(score) if has_threshold else "",
                format_steps_to_threshold(score),
            )
        )
    return table(header, rows)


def _cost_table(families: dict[str, list[Score]]) -> str:
    rows = [(each.variant, *format_cost_of_use(each)) for family in families.values() for each in family]
    return table(("variant", *COSTS_OF_USE), rows)


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; bars and tags inside a cell are escaped, and a cell stays on its line."""
    lines = [header, ("---",) * len(header), *rows]
    escaped = [[" ".join(_escape(str(cell)).split()) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _escape(text: str) -> str:
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", text.replace("|", "\\|"))
