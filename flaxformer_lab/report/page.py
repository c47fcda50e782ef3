"""An ablation as one HTML file for people: verdicts, overview, and for each task its table and charts.

It opens without a network and runs no script; every figure has a text alternative with its values.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from flaxformer_lab.report.claims import Decision, Finding
from flaxformer_lab.report.designs import factorial
from flaxformer_lab.report.figures import threshold_figure
from flaxformer_lab.report.formatting import (
    TITLE,
    effects_in_words,
    format_conditions,
    format_count,
    format_errors,
    format_interval,
    format_mean,
    format_p_value,
    format_provenance,
    format_reach,
    format_search,
    format_seeds,
    format_threshold,
    in_words,
    lead,
    sentence,
    with_minus_signs,
)
from flaxformer_lab.report.markup import Markup, breakable, join, scrolling, tag
from flaxformer_lab.report.statistics import COVERAGE, FEWEST_SEEDS
from flaxformer_lab.report.summary import MARGIN, SLACK, Difference, Summary, metric_range
from flaxformer_lab.report.task_section import NOTHING, task_section
from flaxformer_lab.tasks import PrimaryMetric

# Even if a name could become markup, the browser would fetch and run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SIGNS = {"supported": "✓", "refuted": "✕", "supported only when": "◐", "undecided": "?"}


def as_page(summary: Summary, decisions: tuple[Decision, ...]) -> str:
    """The whole file. The same results give the same bytes."""
    tasks = task_ids(summary)
    sections = [
        ("verdicts", "Verdicts", _verdicts(summary, decisions)) if decisions else None,
        ("overview", "Overview", _overview(summary)),
        ("tasks", "Tasks", [task_section(summary, *each) for each in tasks.items()]),
        ("cells", "Cells", _cells(summary)),
        ("provenance", "How it was made", _provenance(summary)) if format_provenance(summary) else None,
        ("reading", "How to read this page", _reading(summary)),
    ]
    shown = [each for each in sections if each is not None]
    columns = tag(
        "div",
        _contents([(id_, title) for id_, title, _ in shown], tasks),
        tag("main", [_section(*each) for each in shown], id="results", tabindex="-1"),
        class_="columns",
    )
    footer = "Made by flaxformer_lab from the ablation's stored results alone."
    return page_of(summary.grid.config.question or TITLE, [_header(summary, decisions), columns], footer)


def page_of(title: str, content: Sequence[Markup], footer: str) -> str:
    """A whole page, with a link past its header to the results."""
    skip = tag("a", "Skip to the results", class_="skip", href="#results")
    body = tag("body", skip, content, tag("footer", tag("p", footer)))
    return f"<!doctype html>\n{tag('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Markup:
    style = resources.files("flaxformer_lab.report").joinpath("page.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("link", rel="icon", href="data:,"),  # else a server is asked for one, and its refusal is an error
        tag("title", title),
        tag("style", Markup(style)),
    )


def _section(id_: str, title: str, content: Any) -> Markup:
    return tag("section", tag("h2", title, id=id_), content, aria_labelledby=id_)


def task_ids(summary: Summary) -> dict[str, str]:
    """The tasks of which cells are planned, each with an id that is valid whatever its name."""
    planned = {cell.task for cell in summary.grid.cells}
    return {task: f"task-{k}" for k, task in enumerate(summary.grid.config.tasks, 1) if task in planned}


def _contents(sections: list[tuple[str, str]], tasks: Mapping[str, str]) -> Markup:
    def entry(id_: str, title: str) -> Markup:
        links = [tag("li", tag("a", breakable(task), href=f"#{task_id}")) for task, task_id in tasks.items()]
        return tag("li", tag("a", title, href=f"#{id_}"), tag("ul", links) if id_ == "tasks" else None)

    return tag("nav", tag("ul", [entry(*each) for each in sections]), aria_label="Contents")


# ---------------------------------------------------------------------------------------------- the headline


def _header(summary: Summary, decisions: tuple[Decision, ...]) -> Markup:
    config, total, tasks = summary.grid.config, len(summary.grid.cells), task_ids(summary)
    setting = (
        format_count(len(tasks), "task"),
        format_count(len(variants(summary)), "variant"),
        format_seeds(config, tasks),
        format_search(summary),
        f"baseline: {config.baseline}",
        *([f"matched by {config.match}"] if config.match != "none" else []),
    )
    decided = sum(each.verdict != "undecided" for each in decisions)
    broken = sum(score.bound_held is False for score in summary.scores)
    bounds = sum(score.bound_held is not None for score in summary.scores)
    tiles = [
        _tile(f"{len(summary.finished)} of {total}", "cells finished", _progress(summary)),
        _tile(str(len(summary.failures)), "cells failed", alarm=bool(summary.failures)),
        _tile(str(len(summary.missing)), "cells missing"),
        _tile(f"{decided} of {len(decisions)}", "claims decided") if decisions else None,
        _tile(f"{bounds - broken} of {bounds}", "bounds of theory held", alarm=broken > 0) if bounds else None,
    ]
    return tag(
        "header",
        tag("h1", config.question or TITLE),
        tag("p", lead(summary, decisions), class_="lead"),
        tag("ul", _finding(summary, decisions), class_="finding"),
        tag("p", " · ".join(setting), class_="setting"),
        tag("ul", tiles, class_="tiles"),
    )


def _finding(summary: Summary, decisions: tuple[Decision, ...]) -> list[Markup]:
    """One line a verdict, or a task where nothing is claimed, with a link to where it comes from."""
    if decisions:
        return [
            tag("li", tag("a", each.claim.name, href=f"#claim-{k}"), f" {each.verdict}: {each.reason}.")
            for k, each in enumerate(decisions, 1)
        ]
    found = [(task, task_id, _result(summary, task)) for task, task_id in task_ids(summary).items()]
    return [
        tag("li", tag("a", breakable(task), href=f"#{task_id}"), f": {said}") for task, task_id, said in found if said
    ]


def _result(summary: Summary, task: str) -> str:
    """What a task's design asks first, then how its variants compare with the baseline."""
    crossed = factorial(summary, task)
    return " ".join(filter(None, (crossed and effects_in_words(crossed), in_words(summary, task))))


def _tile(number: str, caption: str, more: Markup | None = None, *, alarm: bool = False) -> Markup:
    return tag("li", tag("strong", number), tag("span", caption), more, class_="alarm" if alarm else None)


def _progress(summary: Summary) -> Markup:
    parts = (("finished", summary.finished), ("failed", summary.failures))
    total = max(len(summary.grid.cells), 1)
    bars = [tag("span", class_=name, style=f"width:{100 * len(cells) / total:.2f}%") for name, cells in parts]
    return tag("span", bars, class_="progress", aria_hidden="true")


# ---------------------------------------------------------------------------------------------- the verdicts


def _verdicts(summary: Summary, decisions: tuple[Decision, ...]) -> Markup:
    return tag(
        "div", [_card(each, f"claim-{k}", task_ids(summary)) for k, each in enumerate(decisions, 1)], class_="cards"
    )


def _card(decision: Decision, id_: str, task_ids: Mapping[str, str]) -> Markup:
    verdict, claim = decision.verdict, decision.claim
    badge = tag("span", tag("span", SIGNS[verdict], aria_hidden="true"), f" {verdict}", class_="badge")
    return tag(
        "article",
        tag("h3", tag("span", claim.name, class_="claim"), " ", badge),
        tag("blockquote", tag("p", claim.statement)),
        tag("p", sentence(decision.reason), class_="reason"),
        tag("ul", [_evidence(each, task_ids) for each in decision.findings], class_="findings"),
        [
            tag("p", with_minus_signs(each), class_="reach")
            for each in (format_errors(decision), *format_reach(decision))
            if each
        ],
        None if claim.source is None else tag("p", f"Source: {claim.source}", class_="source"),
        id=id_,
        class_=f"card {verdict.replace(' ', '-')}",
    )


def _evidence(finding: Finding, task_ids: Mapping[str, str]) -> Markup:
    comparison, interval = finding.comparison, finding.interval
    question = sentence(comparison.question)
    compared = f"{comparison.more}" + ("" if comparison.less is None else f", less {comparison.less}")
    tasks = dict.fromkeys(each.task for each in comparison.parts)
    tables = [tag("a", breakable(task), href=f"#{task_ids[task]}") for task in tasks if task in task_ids]
    if interval is None:
        answer = [tag("strong", "not measured"), " yet"]
    else:
        difference = with_minus_signs(format_interval(interval, finding.digits))
        conditions = with_minus_signs(f", threshold {format_threshold(finding)}{format_conditions(finding)}")
        answer = [tag("strong", finding.answer), f": {difference}{conditions}"]
    return tag(
        "li",
        tag("p", question, " ", tag("span", answer, class_=f"answer {finding.answer}")),
        None
        if interval is None
        else tag(
            "figure",
            threshold_figure(
                interval,
                comparison.threshold,
                finding.answer,
                question,
                finding.digits,
                within=comparison.within,
            ),
        ),
        tag("p", f"Why {format_threshold(finding)}: {comparison.because}.", class_="because")
        if comparison.because
        else None,
        tag("p", compared, [[" · table of ", each] for each in tables], class_="compared"),
    )


# ---------------------------------------------------------------------------------------------- the overview


def variants(summary: Summary) -> list[str]:
    """Every variant of the grid, the baseline first."""
    names = [summary.grid.config.baseline, *(cell.variant for cell in summary.grid.cells)]
    return list(dict.fromkeys(names))


def _overview(summary: Summary) -> list[Markup]:
    tasks = task_ids(summary)
    head = tag("tr", tag("th", "variant", scope="col"), [tag("th", breakable(task), scope="col") for task in tasks])
    rows = [_overview_row(summary, tasks, variant) for variant in variants(summary)]
    caption = (
        f"How much better or worse than {summary.grid.config.baseline} each variant is, paired by seed; the baseline's "
        "row holds its score. Bold: clear after Holm's correction."
    )
    return [
        tag("p", caption, class_="note"),
        scrolling("Difference to the baseline, tasks by variants", tag("table", head, rows, class_="overview")),
        tag(
            "p",
            *(part for kind in ("worse", "better") for part in (tag("span", class_=f"swatch {kind}"), f" {kind} ")),
            "· full colour at a difference as large as the metric's range, or at the task's greatest where it has no "
            "upper limit · "
            f"“{NOTHING}”: the variant means nothing there, or has no baseline yet · “…”: not finished",
            class_="legend",
        ),
    ]


def _overview_row(summary: Summary, tasks: Iterable[str], variant: str) -> Markup:
    cells = [_overview_cell(summary, task, variant) for task in tasks]
    return tag("tr", tag("th", breakable(variant), scope="row"), cells)


def _overview_cell(summary: Summary, task: str, variant: str) -> Markup:
    difference, score = summary.difference(task, variant), summary.score(task, variant)
    if score is not None and difference is not None and math.isfinite(difference.interval.mean):
        return _difference_cell(summary, difference, score.metric)
    if score is not None:
        mean, interval = (
            with_minus_signs(format_(score.interval, score.metric.digits)) for format_ in (format_mean, format_interval)
        )
        if variant == summary.grid.config.baseline or not math.isfinite(score.interval.mean):
            return tag("td", mean, class_="base", title=f"{score.metric.label} {interval}")
        base = summary.score(task, summary.grid.config.baseline)
        why = f"the baseline {'has not finished' if base is None else 'is not finite'}, {score.metric.label} {interval}"
        return tag("td", NOTHING, class_="none", title=why, aria_label=f"nothing to compare with: {why}")
    if any((cell.task, cell.variant) == (task, variant) for cell, _ in summary.failures):
        return tag("td", "failed", class_="failed")
    if any((cell.task, cell.variant) == (task, variant) for cell in summary.missing):
        return tag("td", "…", class_="none", title="not finished", aria_label="not finished")
    why = next((why for t, v, why in summary.grid.dropped if (t, v) == (task, variant)), "not part of this task")
    return tag("td", NOTHING, class_="none", title=why, aria_label=f"left out: {why}")


def _difference_cell(summary: Summary, difference: Difference, metric: PrimaryMetric) -> Markup:
    mean = difference.interval.mean
    share = min(abs(mean) / _full_colour(summary, difference.task, metric), 1.0)
    text = with_minus_signs(format_mean(difference.interval, metric.digits, signed=True))
    p_value = format_p_value(difference.corrected_p) or "unknown"
    details = f"{format_interval(difference.interval, metric.digits, signed=True)}, Holm p {p_value}"
    return tag(
        "td",
        text if difference.direction == "level" else tag("strong", text),
        class_="better" if mean > 0 else "worse",
        style=f"--share:{100 * share:.0f}%",
        title=f"{difference.variant} on {difference.task}: {with_minus_signs(details)}",
    )


def _full_colour(summary: Summary, task: str, metric: PrimaryMetric) -> float:
    """The difference that is drawn in full colour."""
    means = [abs(each.interval.mean) for each in summary.differences if each.task == task]
    return metric_range(metric) or max((mean for mean in means if math.isfinite(mean) and mean > 0), default=1.0)


# ---------------------------------------------------------------------------------------------- cells and notes


def _cells(summary: Summary) -> list[Markup | None]:
    failed = [
        tag("li", tag("strong", f"{cell.task} / {cell.variant}"), tag("pre", error)) for cell, error in summary.failures
    ]
    missing: dict[str, list[str]] = {}
    for cell in summary.missing:
        missing.setdefault(cell.task, []).append(cell.variant)
    dropped = [
        tag("li", tag("strong", f"{task} / {variant}"), f": {why}") for task, variant, why in summary.grid.dropped
    ]
    finished = f"{len(summary.finished)} of {len(summary.grid.cells)} cells have finished."
    return [
        tag("p", finished),
        *([tag("h3", "Failed"), tag("ul", failed, class_="failures")] if failed else []),
        *([tag("h3", "Missing"), tag("dl", _listed(missing), class_="missing")] if missing else []),
        tag(
            "details",
            tag("summary", f"Left out: {format_count(len(dropped), 'pair')} of a task and a variant that mean nothing"),
            tag("ul", dropped),
        )
        if dropped
        else None,
    ]


def _listed(groups: dict[str, list[str]]) -> list[Markup]:
    return [
        part
        for task, names in groups.items()
        for part in (tag("dt", task), tag("dd", join([name, ", "] for name in names[:-1]), names[-1]))
    ]


def _provenance(summary: Summary) -> Markup:
    rows = [(tag("dt", sentence(name)), tag("dd", made)) for name, made in format_provenance(summary)]
    return tag("dl", rows, class_="notes")


def _reading(summary: Summary) -> Markup:
    config, tasks = summary.grid.config, task_ids(summary)
    fewest = min(len(config.seeds_of(task)) for task in tasks)
    searching = {number for task in tasks if (number := config.search_seeds_of(task))}
    notes = (
        (
            "Score",
            "The mean over seeds on test examples, at the learning rate that was best on validation"
            + (f" for the first {min(searching)} of them." if searching else "."),
        ),
        (
            "Interval",
            f"95%, by the studentised bootstrap over {format_seeds(config, tasks)}; inside the limits of the score. "
            "Below a table and a verdict stands whether test examples are drawn again as well: where all seeds share "
            "them, and the score is their mean. Scores of all examples at once, like an area under a curve, and "
            "measures of mixing have the error of seeds alone. Where each seed has test examples of its own, the "
            "spread of seeds has their error. Without at least two seeds, where they are all alike, or where a run is "
            "not finite, there is none. "
            f"{_coverage(fewest)}",
        ),
        (
            "Failures",
            "Seeds whose test score does not reach the task's threshold, as a share with its Clopper-Pearson interval, "
            "beside the mean of the rest. Where some seeds fail, a claim is decided only if the rest agree.",
        ),
        (
            "Difference",
            "Of the variant to the baseline, paired by seed. Its sign is turned where less is better, so that right "
            "and blue always mean that the variant is better.",
        ),
        (
            "Clear",
            "A difference whose p-value (paired t-test) is below 0.05 after Holm's correction for how many variants "
            "the task compares; a variant that is the baseline's function there does not count. In charts: a filled "
            f"mark, where others are hollow. With fewer than {FEWEST_SEEDS} seeds nothing is clear.",
        ),
        (
            "Equal within",
            f"Two one-sided t-tests find the difference smaller than {MARGIN:g} of the metric's range (p below 0.05, "
            "corrected alike). A difference that is neither clear nor equal is open.",
        ),
        (
            "Claim",
            "Each answer's p is corrected by Holm's method for all comparisons of all claims on this page.",
        ),
        (
            "Equal FLOPs",
            "Validation scores where the one of the compared cells that takes fewest FLOPs ends, on lines between the "
            "evaluations; the others' learning rates have not fallen to their last value by then. Training counts "
            "three times the forward pass.",
        ),
        (
            "Thresholds",
            "Those for which the verdict stays, one at a time: the tests are repeated, with Holm's correction, until "
            "the threshold at which the verdict turns is found.",
        ),
        (
            "Not converged",
            "Validation curves still rise: the mean score of the last quarter of the updates exceeds that of the "
            f"quarter before by more than {summary.grid.config.score_tolerance:g} and by more than "
            f"{summary.grid.config.noise_tolerance:g} standard errors.",
        ),
        (
            "P(better)",
            "The share of seeds for which the variant scores above the baseline, ties counted half, with its "
            "Clopper-Pearson interval.",
        ),
        ("Interquartile mean", "The mean without the lowest and the highest quarter of the seeds."),
        (
            "Bound",
            f"The most that theory allows, where a score could exceed it. Broken: the whole interval is better than it "
            f"by more than {SLACK:g}.",
        ),
        ("Steps to threshold", "The median over seeds, or how many seeds arrived where not all did."),
        ("FLOPs", "Of a forward pass of one example, the same on every device."),
    )
    return tag("dl", [(tag("dt", word), tag("dd", meaning)) for word, meaning in notes], class_="notes")


def _coverage(seeds: int) -> str:
    """What simulations say of intervals at the nearest number of seeds."""
    number = min(COVERAGE["normal"], key=lambda each: abs(each - seeds))
    shares = {law: f"{100 * by_seeds[number]:.0f}%" for law, by_seeds in COVERAGE.items()}
    return (
        f"In simulations with {number} seeds it holds the mean in {shares['normal']} of cases for normal values and "
        f"{shares['half-normal']} for half-normal ones, but only {shares['lognormal']} for lognormal ones. Where one "
        f"run in ten fails it holds the mean of all in only {shares['one run in ten fails']}, and that of the rest in "
        f"{shares['one run in ten fails, the rest']}."
    )
