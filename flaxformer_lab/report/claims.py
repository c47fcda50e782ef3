"""Verdicts on an ablation's claims: which comparisons answer yes, no or neither, and what follows from the answers.

A comparison is between two quantities (scores, or measures of mixing), paired by seed. It is decided where the 95%
interval of their difference lies on one side of a threshold, and its p is below 0.05 after Holm's correction for all
comparisons of all claims that are decided together. It is open otherwise: also with too few seeds, with seeds that are
all alike, and where seeds that failed would turn the answer.

Two lines say how far a verdict reaches: what it is at equal FLOPs, and for which thresholds it stays.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from flaxformer_lab.ablation.claim_config import Claim, Comparison, Conclusion, Cost, Quantity, Verdict
from flaxformer_lab.report import fronts
from flaxformer_lab.report.statistics import (
    FEWEST_SEEDS,
    SIGNIFICANT,
    Examples,
    Interval,
    Limits,
    bootstrap_interval,
    equivalence_p_value,
    holm,
    paired_p_value,
)
from flaxformer_lab.report.summary import (
    Score,
    Summary,
    at_equal_flops,
    difference_limits,
    difference_of_examples,
    joined_examples,
    measure_limits,
)

Answer = Literal["yes", "no", "open"]


@dataclass(frozen=True)
class Finding:
    """What a comparison found: the difference with its interval, and the answer. digits: of a score, in print.

    corrected_p: of a difference as far from the threshold, by chance. failed: seeds that failed while others of the
    same cell did not; rest: the difference of the others, if any. why_open: what keeps an open answer undecided.
    over_examples: the interval has the error of test examples that the seeds share, and not only that of seeds.
    """

    comparison: Comparison
    interval: Interval | None  # None where a cell is missing
    answer: Answer
    digits: int = 3
    corrected_p: float = float("nan")
    failed: int = 0
    rest: Interval | None = None
    why_open: str = ""
    not_converged: tuple[str, ...] = ()  # cells whose validation curves still rise
    # Where fronts are compared at equal cost: how far off the costs may be for the answer to stay; inf: any.
    stays_to_ratio: float | None = None
    # The thresholds between which the claim's verdict stays, all others as they are; None where it is undecided.
    stays: tuple[float, float] | None = None
    over_examples: bool = False


@dataclass(frozen=True)
class Decision:
    """A claim with its verdict. conclusion: what follows from the findings, in one sentence.

    at_equal_flops: the same from validation scores where, task by task, the cell of the claim that takes fewest FLOPs
    ends; None where the claim rests on measures alone.
    """

    claim: Claim
    verdict: Verdict
    conclusion: str
    findings: tuple[Finding, ...]
    at_equal_flops: "Decision | None" = None

    @property
    def reason(self) -> str:
        """The conclusion, with the cells that it rests on and that have not converged."""
        unfinished = dict.fromkeys(name for finding in self.findings for name in finding.not_converged)
        if self.verdict == "undecided" or not unfinished:
            return self.conclusion
        return f"{self.conclusion} (not converged: {', '.join(unfinished)})"


def decide_all(summary: Summary) -> tuple[Decision, ...]:
    """The verdicts of an ablation's claims, each corrected for the comparisons of all of them."""
    return decide(summary.grid.config.decided_claims, summary)


def decide(claims: Sequence[Claim], summary: Summary) -> tuple[Decision, ...]:
    """The verdicts of claims that are decided together; undecided where one depends on an answer that is open."""
    views = [_view_at_equal_flops(claim, summary) for claim in claims]
    at_end = [[_measure(comparison, summary) for comparison in claim.comparisons] for claim in claims]
    equal = [[_measure(each, view) for each in claim.comparisons] for claim, view in zip(claims, views, strict=True)]
    ends, equals = ([*map(_decision, claims, rows, _corrected(rows))] for rows in (at_end, equal))
    return tuple(
        dataclasses.replace(
            decision,
            findings=_with_spans(number, decision, at_end),
            at_equal_flops=None if view is summary else other,
        )
        for number, (decision, other, view) in enumerate(zip(ends, equals, views, strict=True))
    )


def _corrected(measured: "Sequence[Sequence[_Measured]]") -> list[list[float]]:
    """The p of each comparison of each claim, corrected for all of them."""
    corrected = iter(holm([each.p_value for row in measured for each in row]))
    return [[float(next(corrected)) for _ in row] for row in measured]


def _view_at_equal_flops(claim: Claim, summary: Summary) -> Summary:
    """A summary of the claim's cells after equal FLOPs, task by task; the summary itself where only measures count."""
    compared = [each for each in claim.comparisons if each.at_equal is None]  # others are at equal cost already
    names = dict.fromkeys((q.task, q.variant) for each in compared for q in each.parts if q.measure is None)
    scores = {name: score for name in names if (score := summary.score(*name)) is not None}
    if not scores:
        return summary
    replaced: dict[tuple[str, str], Score | None] = {}
    for task in {task for task, _ in scores}:
        mine = {name: score for name, score in scores.items() if name[0] == task}
        replaced |= zip(mine, at_equal_flops([*mine.values()], summary.grid.config.tasks[task].threshold), strict=True)
    kept = (replaced.get((each.task, each.variant), each) for each in summary.scores)
    return dataclasses.replace(summary, scores=tuple(each for each in kept if each is not None))


def _decision(claim: Claim, measured: "Sequence[_Measured]", corrected_p: Sequence[float]) -> Decision:
    findings = tuple(map(_answered, measured, corrected_p))
    outcome = conclude(functools.partial(conclusion_of, claim), [finding.answer for finding in findings])
    if outcome is not None:
        return Decision(claim, *outcome, findings)
    unclear = [f"{f.comparison.question} ({f.why_open})" for f in findings if f.answer == "open"]
    return Decision(claim, "undecided", f"open: {'; '.join(unclear)}", findings)


def conclusion_of(claim: Claim, *answers: bool) -> tuple[Verdict, str]:
    """The verdict and the reason that follow from the answers, in the order of the claim's comparisons."""
    return first_that_applies(claim.conclusions, [comparison.name for comparison in claim.comparisons], *answers)


def first_that_applies(conclusions: Iterable[Conclusion], names: Iterable[str], *answers: bool) -> tuple[Verdict, str]:
    """The verdict and the reason of the first conclusion that the answers, of these names, lead to."""
    given = dict(zip(names, answers, strict=True))
    applies = (c for c in conclusions if all(given[name] == (wanted == "yes") for name, wanted in c.when.items()))
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


@dataclass(frozen=True)
class _Values:
    """A quantity, or a difference of two, for each seed. succeeded: seeds of which no part failed beside others."""

    values: Float[np.ndarray, " seeds"]
    examples: Examples
    succeeded: Bool[np.ndarray, " seeds"]
    limits: Limits
    digits: int

    @functools.cached_property
    def interval(self) -> Interval:
        """It knows of no threshold."""
        return bootstrap_interval(self.values, examples=self.examples, limits=self.limits)

    @property
    def rest(self) -> "_Values | None":
        """The same of the seeds that did not fail; None where none or all did."""
        some = self.succeeded.any() and not self.succeeded.all()
        return dataclasses.replace(self, values=self.values[self.succeeded]) if some else None

    def p_value(self, comparison: Comparison) -> float:
        """Of a difference as far from the comparison's threshold, by chance."""
        values, examples, threshold = self.values, self.examples, comparison.threshold
        if not comparison.within:
            return paired_p_value(values, examples=examples, null=threshold)
        if abs(np.mean(values)) < threshold:
            return equivalence_p_value(values, threshold, examples=examples)
        return paired_p_value(values, examples=examples, null=float(np.copysign(threshold, np.mean(values))))


@dataclass(frozen=True)
class _Measured:
    """A comparison before it is answered. rest: of seeds that did not fail, where some did.

    moved: of fronts, the values with other costs of the second one, by the ratio to those that were measured;
    cost_ratio: so far off they may be, as the comparison says or as far as seeds differ.
    """

    comparison: Comparison
    found: _Values | None = None
    rest: _Values | None = None
    moved: Mapping[float, _Values] = field(default_factory=dict)
    cost_ratio: float = 1.0
    at_edge: tuple[str, ...] = ()  # cells whose learning rate is the best only of those that were tried
    not_converged: tuple[str, ...] = ()

    @functools.cached_property
    def p_value(self) -> float:
        """Of a difference as far from the threshold, by chance; NaN where nothing was measured."""
        return float("nan") if self.found is None else self.found.p_value(self.comparison)

    def at(self, threshold: float) -> "_Measured":
        """The same measurement against another threshold."""
        return dataclasses.replace(self, comparison=dataclasses.replace(self.comparison, threshold=threshold))


def _measure(comparison: Comparison, summary: Summary) -> _Measured:
    moved: dict[float, _Values] = {}
    cost_ratio = comparison.cost_ratio
    if comparison.at_equal is not None:
        moved, parts = _difference_of_fronts(comparison, summary)
        found = moved.get(1.0)
    else:
        found, parts = values_of(comparison.more, summary), comparison.parts
        if found is not None and comparison.less is not None:
            less = values_of(comparison.less, summary)
            found = None if less is None else _difference(found, less)
    if found is None:
        return _Measured(comparison)
    cells = {f"{each.variant} on {each.task}": summary.score(each.task, each.variant) for each in parts}
    if comparison.at_equal is not None:
        cost_ratio = max(cost_ratio, *(fronts.noise_of(each, comparison.at_equal) for each in cells.values()))
    return _Measured(
        comparison,
        found,
        rest=found.rest,
        moved=moved,
        cost_ratio=cost_ratio,
        at_edge=tuple(name for name, score in cells.items() if score.rate_edge is not None),
        not_converged=tuple(name for name, score in cells.items() if score.converged is False),
    )


def _answered(measured: _Measured, corrected_p: float) -> Finding:
    """The answer, which needs the interval and the corrected p, of all seeds and of those that did not fail."""
    comparison, found, rest = measured.comparison, measured.found, measured.rest
    if found is None:
        return Finding(comparison, None, "open", why_open="not measured here")
    values, interval, threshold = found.values, found.interval, comparison.threshold
    failed, ends = int(np.sum(~found.succeeded)), (-threshold, threshold) if comparison.within else (threshold,)
    answer, why = _answer(comparison, interval, corrected_p), "not clear after the correction for all comparisons"
    if comparison.less is None and not np.any(values):  # exactly 0 in every seed: a path that does not exist
        interval, answer = Interval(0.0, 0.0, 0.0), "yes" if (threshold < 0) != comparison.within else "no"
    elif len(values) < FEWEST_SEEDS:
        answer, why = "open", f"fewer than {FEWEST_SEEDS} seeds"
    elif not np.all(np.isfinite(values)):
        answer, why = "open", "a run is not finite"
    elif np.isnan(interval.low):
        answer, why = "open", "all seeds are alike"
    elif failed == len(values):
        answer, why = "open", "no seed reaches the task's threshold in both cells"
    elif rest is not None and answer != _answer_alone(comparison, rest):
        answer, why = "open", f"{failed} of {len(values)} seeds failed, and the others answer otherwise"
    elif any(interval.low <= end < interval.high for end in ends):
        why = "the interval holds the threshold"
    ratio = _stays_to_ratio(measured, answer)
    if ratio is not None and ratio < measured.cost_ratio:
        why = f"costs may be off by {measured.cost_ratio:.3g} times, and with some as high or low the answer is another"
        answer, ratio = "open", None
    if measured.at_edge:
        answer, why = "open", f"the best learning rate lies at an edge of those tried: {', '.join(measured.at_edge)}"
    why = why if answer == "open" else ""
    return Finding(
        comparison,
        interval,
        answer,
        found.digits,
        corrected_p,
        failed,
        None if rest is None else rest.interval,
        why,
        measured.not_converged,
        ratio,
        over_examples=found.examples is not None,
    )


def _stays_to_ratio(measured: _Measured, answer: Answer) -> float | None:
    """How far off the costs of fronts may be, of COST_RATIOS, for the answer to stay; None where it is open."""
    if answer == "open" or not measured.moved:
        return None
    last = 1.0
    for ratio in COST_RATIOS:
        both = [measured.moved.get(each) for each in (ratio, 1 / ratio)]
        if any(each is None or _answer_alone(measured.comparison, each) != answer for each in both):
            return last
        last = ratio
    return last


def _answer_alone(comparison: Comparison, values: _Values) -> Answer:
    """What some of the seeds, or other costs, answer by their own test."""
    return _answer(comparison, values.interval, values.p_value(comparison))


def _answer(comparison: Comparison, interval: Interval, corrected_p: float) -> Answer:
    if np.isnan(interval.low) or not corrected_p < SIGNIFICANT:
        return "open"
    if not comparison.within:
        return answer_to(interval, comparison.threshold)
    if abs(interval.mean) < comparison.threshold:
        return "yes"
    return "no" if max(interval.low, -interval.high) >= comparison.threshold else "open"


# ---------------------------------------------------------------------------------------------- thresholds

HALVINGS = 40  # of the way to a threshold that turns the verdict


def _with_spans(number: int, decision: Decision, measured: list[list[_Measured]]) -> tuple[Finding, ...]:
    """The findings of claim `number`, each with the thresholds between which its verdict stays."""
    if decision.verdict == "undecided":
        return decision.findings

    def stays(place: int, threshold: float) -> bool:
        """With another threshold in one comparison, from which the correction of all follows."""
        rows = [list(row) for row in measured]
        rows[number][place] = rows[number][place].at(threshold)
        return _decision(decision.claim, rows[number], _corrected(rows)[number]).verdict == decision.verdict

    def span(place: int, finding: Finding) -> tuple[float, float] | None:
        if finding.interval is None or not np.isfinite(finding.interval.mean):
            return None
        start, within = finding.comparison.threshold, finding.comparison.within
        turning = abs(finding.interval.mean) if within else finding.interval.mean  # there the answer is open
        far = 1e3 * (1 + abs(start) + abs(turning))
        same = functools.partial(stays, place)
        low = _last_same(same, start, [turning] * (turning < start), 0.0 if within else start - far)
        high = _last_same(same, start, [turning] * (turning > start), start + far)
        return low if within or low > start - far else -np.inf, high if high < start + far else np.inf

    return tuple(dataclasses.replace(each, stays=span(place, each)) for place, each in enumerate(decision.findings))


def _last_same(same: Callable[[float], bool], start: float, probes: Sequence[float], limit: float) -> float:
    """How far from the start `same` holds: to the limit, or by bisection to where it ends before the first probe."""
    held = start
    for turned in (*probes, limit):
        if not same(turned):
            break
        held = turned
    else:
        return limit
    for _ in range(HALVINGS):
        middle = (held + turned) / 2
        held, turned = (middle, turned) if same(middle) else (held, middle)
    return held


def _difference(more: _Values, less: _Values) -> _Values:
    return _Values(
        more.values - less.values,
        difference_of_examples(more.examples, less.examples),
        more.succeeded & less.succeeded,
        difference_limits(more.limits),
        more.digits,
    )


def values_of(quantity: Quantity, summary: Summary) -> _Values | None:
    """The quantity for each seed; None where a cell has not finished.

    The mean over several tasks has the error of all their test examples, each weighed by its task's share of the mean.
    """
    found = [_values_of_task(part, summary) for part in quantity.parts]
    if any(each is None for each in found):
        return None
    if quantity.gain_over is not None:
        return _difference(*found)
    return _Values(
        np.mean([each.values for each in found], axis=0),
        joined_examples([(1 / len(found), each.examples) for each in found]),
        np.all([each.succeeded for each in found], axis=0),
        found[0].limits,
        found[0].digits,
    )


COST_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class _Family:
    """The members of a front: the quantity of each with its values, what it costs, and its score on validation."""

    parts: tuple[Quantity, ...]
    values: Sequence[_Values]
    costs: fronts.Values
    scores: fronts.Values

    def with_costs(self, ratio: float) -> "_Family":
        """The same, where every member costs this many times as much."""
        return dataclasses.replace(self, costs=self.costs * ratio)

    def mean(self, between: tuple[float, float]) -> tuple[_Values, list[Quantity]]:
        """The mean of the front between two costs, and the quantities that it is made of."""
        weights = fronts.front_weights(self.costs, self.scores, between)
        parts = [part for part, weight in zip(self.parts, weights, strict=True) if weight]
        return _weighted(self.values, weights), parts


def _family_of(quantity: Quantity, cost: Cost, summary: Summary) -> _Family | None:
    """None where a cell or a cost is missing."""
    members = [summary.score(quantity.task, variant) for variant in quantity.front]
    costs = [fronts.cost_of(each, cost) if each else None for each in members]
    values = [_values_of_task(part, summary) for part in quantity.parts]
    if any(each is None for each in (*costs, *values)):
        return None
    return _Family(quantity.parts, values, np.array(costs), fronts.validation_scores(members))


def _difference_of_fronts(comparison: Comparison, summary: Summary) -> tuple[dict[float, _Values], list[Quantity]]:
    """The mean difference of two fronts at equal cost, by the ratio that the costs of `less` are multiplied with.

    And the quantities that it is made of, at the costs as they are. Nothing where a cell or a cost is missing, or the
    families have no range of costs in common; a ratio is left out where they have none with it.
    """
    more, less = (_family_of(each, comparison.at_equal, summary) for each in (comparison.more, comparison.less))
    found, parts = {}, []
    if more is None or less is None:
        return found, parts
    for ratio in (1.0, *COST_RATIOS, *(1 / each for each in COST_RATIOS)):
        moved = less.with_costs(ratio)
        between = fronts.shared_costs(more.costs, moved.costs)
        if between is None:
            continue
        (ours, of_ours), (theirs, of_theirs) = more.mean(between), moved.mean(between)
        found[ratio] = _difference(ours, theirs)
        parts = of_ours + of_theirs if ratio == 1.0 else parts
    return found, parts


def _weighted(values: Sequence[_Values], weights: Sequence[float]) -> _Values:
    """The weighted mean of quantities that are measured on the same test examples; weights sum to 1."""
    pairs = [(each, weight) for each, weight in zip(values, weights, strict=True) if weight]
    known = [each.examples is not None for each, _ in pairs]
    return _Values(
        sum(weight * each.values for each, weight in pairs),
        sum(weight * each.examples for each, weight in pairs) if all(known) else None,
        np.all([each.succeeded for each, _ in pairs], axis=0),
        pairs[0][0].limits,
        pairs[0][0].digits,
    )


def _values_of_task(quantity: Quantity, summary: Summary) -> _Values | None:
    """The quantity for each seed; None where its cell has not finished."""
    score = summary.score(quantity.task, quantity.variant)
    if score is None:
        return None
    # Where no seed reaches the threshold that is no failure, but what the variant can do.
    succeeded = score.succeeded if score.succeeded.any() else np.ones(len(score.values), bool)
    if quantity.measure is None:
        return _Values(score.values, score.examples, succeeded, score.metric.limits, score.metric.digits)
    values, limits = score.measures.get(quantity.measure), measure_limits(quantity.measure, score.metric)
    examples = score.beside_examples.get(quantity.measure)
    return None if values is None else _Values(values, examples, np.ones(len(values), bool), limits, 3)
