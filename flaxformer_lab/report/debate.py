"""The debate on one page: every claim in plain words, with its verdict, its numbers, one figure, and where these stand.

It is made from the decisions of ablations, from benchmarks that decide a claim, and from what is still open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flaxformer_lab.report.claims import Decision
from flaxformer_lab.report.figures import comparisons_figure
from flaxformer_lab.report.formatting import (
    format_conditions,
    format_count,
    format_errors,
    format_interval,
    format_reach,
    format_reasons,
    format_seeds,
    format_threshold,
    format_updates,
    format_verdict,
    sentence,
    with_minus_signs,
)
from flaxformer_lab.report.markup import Markup, breakable, tag
from flaxformer_lab.report.page import SIGNS, page_of
from flaxformer_lab.report.statistics import Interval
from flaxformer_lab.report.summary import Summary

TITLE = "Can Transformers relate features to each other? The debate, claim by claim"
UNTRAINED = "the values of its ablation, which are not stored yet"
IN_LIST = {"supported only when": "supported under a condition"}  # beside statements, which are no conditions


@dataclass(frozen=True)
class Topic:
    """A claim of the debate. needs: what a decision would need, where nothing decides it yet."""

    name: str
    statement: str
    needs: str | None = None


@dataclass(frozen=True)
class Row:
    """One comparison: what was asked, and what was found. said: the numbers in words.

    within: whether the difference should lie between minus and plus the threshold.
    """

    question: str
    interval: Interval
    threshold: float
    answer: str
    said: str
    digits: int = 3
    within: bool = False


@dataclass(frozen=True)
class Evidence:
    """What decides a claim: its comparisons, the conditions, and links (text, address) to its tables and raw numbers.

    is_ratio: the values are ratios, which are drawn on a logarithmic axis around 1.
    """

    claim: str
    statement: str
    verdict: str
    reason: str
    rows: tuple[Row, ...]
    conditions: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    is_ratio: bool = False


def evidence_of(name: str, summary: Summary, decision: Decision) -> Evidence:
    """What an ablation says of a claim. name: of the files of its report, beside the page."""
    rows = [
        Row(
            each.comparison.question,
            each.interval,
            each.comparison.threshold,
            each.answer,
            f"{format_interval(each.interval, each.digits)}, threshold {format_threshold(each)}"
            f"{format_conditions(each)}",
            each.digits,
            each.comparison.within,
        )
        for each in decision.findings
        if each.interval is not None
    ]
    tasks = dict.fromkeys(quantity.task for _, quantity in decision.claim.quantities)
    numbers = {task: number for number, task in enumerate(summary.grid.config.tasks, 1)}
    tables = [(f"table of {task}", f"{name}.html#task-{numbers[task]}") for task in tasks if task in numbers]
    seeds = format_seeds(summary.grid.config, tasks.keys() & numbers.keys())
    updates = format_updates(decision, summary)
    measured = f"Measured with {seeds} a variant" + (f"; updates: {updates}." if updates else ".")
    return Evidence(
        decision.claim.name,
        decision.claim.statement,
        decision.verdict,
        decision.reason,
        tuple(rows),
        tuple(filter(None, (measured, format_errors(decision), *format_reach(decision), format_reasons(decision)))),
        (*tables, ("how it was made", f"{name}.html#provenance"), ("raw numbers", f"{name}.csv.gz")),
    )


def evidence_of_benchmark(
    claim: str, statement: str, found: Mapping[str, Any], machine: str, links: Sequence[tuple[str, str]]
) -> Evidence:
    """What a benchmark says of a claim: a verdict, its reason, and answers on ratios."""
    rows = []
    for each in found["answers"]:
        interval = Interval(each["ratio"], each["low"], each["high"])
        said = f"{format_interval(interval)} times as much, threshold {each['threshold']:g}"
        rows.append(Row(each["question"], interval, each["threshold"], each["answer"], said))
    conditions = (f"Times were measured on {machine}.",)
    return Evidence(
        claim, statement, found["verdict"], found["reason"], tuple(rows), conditions, tuple(links), is_ratio=True
    )


def as_debate(topics: Sequence[Topic], evidence: Sequence[Evidence]) -> str:
    """The page. Of several pieces of evidence on a claim the first that decides gives its verdict.

    The same evidence makes the same bytes.
    """
    decisive = sorted(evidence, key=lambda each: each.verdict == "undecided")
    known = {topic.name: [each for each in decisive if each.claim == topic.name] for topic in topics}
    verdicts = [known[topic.name][0].verdict if known[topic.name] else "open" for topic in topics]
    counts = ", ".join(f"{verdicts.count(each)} {each}" for each in dict.fromkeys((*SIGNS, "open")) if each in verdicts)
    entries = [
        tag("li", tag("a", topic.name, href=f"#{topic.name}"), f" {topic.statement} ", tag("strong", said))
        for topic, said in zip(topics, (IN_LIST.get(each, each) for each in verdicts), strict=True)
    ]
    header = tag(
        "header",
        tag("h1", TITLE),
        tag(
            "p",
            "Someone read softmax(QKᵀ/√d)V and concluded that Transformers cannot relate features to each other. "
            f"Others disagreed. Of {format_count(len(topics), 'claim')}: {counts}.",
            class_="lead",
        ),
        tag(
            "p",
            "Each claim below has the questions that were put to it, what was measured with its 95% interval, one "
            "figure, the conditions under which the verdict holds, and links to tables and raw numbers.",
        ),
        tag("ul", entries, class_="finding"),
    )
    cards = [_card(topic, known[topic.name]) for topic in topics]
    main = tag("main", cards, id="results", tabindex="-1", class_="debate")
    return page_of(TITLE, [header, main], "Made by flaxformer_lab from the stored results of its ablations alone.")


def _card(topic: Topic, evidence: Sequence[Evidence]) -> Markup:
    verdict = evidence[0].verdict if evidence else "open"
    badge = tag("span", tag("span", SIGNS.get(verdict, "…"), aria_hidden="true"), f" {verdict}", class_="badge")
    needs = None if evidence else tag("p", f"Open: needs {topic.needs or UNTRAINED}.", class_="reason")
    return tag(
        "article",
        tag("h2", tag("span", topic.name, class_="claim"), " ", badge),
        tag("blockquote", tag("p", topic.statement)),
        needs,
        [_evidence(each, is_first=k == 0) for k, each in enumerate(evidence)],
        id=topic.name,
        class_=f"card {verdict.replace(' ', '-') if evidence else 'undecided'}",
    )


def _evidence(found: Evidence, *, is_first: bool) -> list[Markup | None]:
    """The reason, the questions with their answers, a figure of them, conditions and links."""
    asked = [
        tag("li", sentence(row.question), " ", tag("strong", row.answer), ": ", with_minus_signs(row.said), ".")
        for row in found.rows
    ]
    other = None if is_first else tag("h3", f"Asked in another way: {found.verdict}")
    reason = format_verdict(found.verdict, found.reason) if found.verdict == "supported only when" else found.reason
    links = [[" · " if k else None, tag("a", breakable(text), href=to)] for k, (text, to) in enumerate(found.links)]
    return [
        other,
        tag("p", sentence(with_minus_signs(reason)), ".", class_="reason"),
        tag("ol", asked, class_="asked"),
        tag("figure", comparisons_figure(found.rows, is_ratio=found.is_ratio)) if found.rows else None,
        *(tag("p", with_minus_signs(each), class_="reach") for each in found.conditions),
        tag("p", links, class_="compared"),
    ]
