"""Verdicts on an ablation's claims: which comparisons answer yes, no or neither, and what follows from the answers.

A comparison is between two quantities (scores, or measures of mixing), paired by seed. It is decided where the 95%
interval of their difference lies on one side of a threshold, and open where the interval contains the threshold.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from flaxformer_lab.ablation.claim_config import Claim, Comparison, Quantity, Verdict
from flaxformer_lab.report.statistics import Interval, bootstrap_interval
from flaxformer_lab.report.summary import Summary

Answer = Literal["yes", "no", "open"]


@dataclass(frozen=True)
class Finding:
    """What a comparison found: the difference with its interval, and the answer. digits: of a score, in print."""

    comparison: Comparison
    interval: Interval | None  # None where a cell is missing
    answer: Answer
    digits: int = 3
    at_edge: tuple[str, ...] = ()  # quantities whose learning rate is the best only of those that were tried: open
    not_converged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """A claim with its verdict. reason: what follows from the findings, in one sentence."""

    claim: Claim
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]


def decide_all(summary: Summary) -> tuple[Decision, ...]:
    """The verdicts of an ablation's claims."""
    return tuple(decide(claim, summary) for claim in summary.grid.config.decided_claims)


def decide(claim: Claim, summary: Summary) -> Decision:
    """The verdict of one claim; undecided where it depends on an answer that is open."""
    findings = tuple(_find(comparison, summary) for comparison in claim.comparisons)
    outcome = conclude(functools.partial(conclusion_of, claim), [finding.answer for finding in findings])
    if outcome is not None:
        verdict, reason = outcome
        unfinished = dict.fromkeys(name for finding in findings for name in finding.not_converged)
        reason += f" (not converged: {', '.join(unfinished)})" if unfinished else ""
        return Decision(claim, verdict, reason, findings)
    unclear = [finding for finding in findings if finding.answer == "open"]
    why = "not measured here" if any(f.interval is None for f in unclear) else "the interval holds the threshold"
    if edges := dict.fromkeys(name for finding in unclear for name in finding.at_edge):
        why = f"the best learning rate lies at an edge of those tried: {', '.join(edges)}"
    questions = "; ".join(finding.comparison.question for finding in unclear)
    return Decision(claim, "undecided", f"open: {questions} ({why})", findings)


def conclusion_of(claim: Claim, *answers: bool) -> tuple[Verdict, str]:
    """The verdict and the reason that follow from the answers, in the order of the claim's comparisons."""
    given = dict(zip((comparison.name for comparison in claim.comparisons), answers, strict=True))
    applies = (c for c in claim.conclusions if all(given[name] == (wanted == "yes") for name, wanted in c.when.items()))
    conclusion = next(applies)
    return conclusion.verdict, conclusion.reason


def conclude(rule: Callable[..., tuple[Verdict, str]], answers: Iterable[Answer]) -> tuple[Verdict, str] | None:
    """What the rule gives whichever way the open answers turn out; None where it depends on them."""
    possible = [(True, False) if answer == "open" else (answer == "yes",) for answer in answers]
    outcomes = {rule(*each) for each in itertools.product(*possible)}
    return outcomes.pop() if len(outcomes) == 1 else None


def answer_to(interval: Interval, threshold: float) -> Answer:
    """Whether the value is above the threshold; open where its interval contains it, or is unknown."""
    if interval.low > threshold:
        return "yes"
    return "no" if interval.high <= threshold else "open"


def _find(comparison: Comparison, summary: Summary) -> Finding:
    values = _values(comparison.more, summary)
    if values is not None and comparison.less is not None:
        subtracted = _values(comparison.less, summary)
        values = None if subtracted is None else values - subtracted
    if values is None:
        return Finding(comparison, None, "open")
    interval = bootstrap_interval(values)
    score = summary.score(comparison.more.task, comparison.more.variant)
    digits = score.metric.digits if score is not None and comparison.more.measure is None else 3
    pair = [quantity for quantity in (comparison.more, comparison.less) if quantity is not None]
    found = {f"{each.variant} on {each.task}": summary.score(each.task, each.variant) for each in pair}
    at_edge = tuple(name for name, each in found.items() if each.rate_edge is not None)
    not_converged = tuple(name for name, each in found.items() if each.converged is False)
    answer = "open" if at_edge else answer_to(interval, comparison.threshold)
    return Finding(comparison, interval, answer, digits, at_edge, not_converged)


def _values(quantity: Quantity, summary: Summary) -> Float[np.ndarray, " seeds"] | None:
    """The quantity for each seed; None where its cell has not finished."""
    score = summary.score(quantity.task, quantity.variant)
    if score is None:
        return None
    return score.values if quantity.measure is None else score.measures.get(quantity.measure)
