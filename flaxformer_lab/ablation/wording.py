"""Figures as words, the same in Markdown, on the page and in a terminal."""

import math

from flaxformer_lab.ablation.claims import Decision, Finding
from flaxformer_lab.ablation.statistics import Interval
from flaxformer_lab.ablation.summary import Score

METRICS = {"r2": "R²"}


def format_metric(metric: str) -> str:
    """A metric's name as in print."""
    return METRICS.get(metric, metric)


def format_findings(decision: Decision) -> str:
    """The difference of each comparison with its interval."""
    return "; ".join(f"{f.comparison.question} {format_finding(f)}" for f in decision.findings)


def format_finding(finding: Finding) -> str:
    """One answer with its difference and threshold."""
    if finding.interval is None:
        return "not measured"
    return f"{finding.answer}: {format_interval(finding.interval)} against {finding.comparison.threshold:g}"


def format_interval(interval: Interval, *, signed: bool = False) -> str:
    """0.500 [0.400, 0.600]; the mean alone where nothing is known of its interval."""
    ends = format_ends(interval, signed=signed)
    return f"{format_mean(interval, signed=signed)} {ends}".rstrip()


def format_mean(interval: Interval, *, signed: bool = False) -> str:
    """0.500, or `not finite` where a run diverged."""
    return f"{interval.mean:{'+' if signed else ''}.3f}" if math.isfinite(interval.mean) else "not finite"


def format_ends(interval: Interval, *, signed: bool = False) -> str:
    """[0.400, 0.600], or nothing where they are not known."""
    sign = "+" if signed else ""
    return "" if math.isnan(interval.low) else f"[{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def format_p_value(p: float) -> str:
    """A p-value to three digits."""
    return "" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def format_bound(score: Score) -> str:
    """Theory's bound and whether it held."""
    if score.bound is None or score.bound_held is None:
        return ""
    return f"≤ {score.bound['value']:.3f} {'held' if score.bound_held else 'BROKEN'}"


def format_steps_to_threshold(score: Score) -> str:
    """The median of the steps to the threshold, or how many seeds reached it where not all did."""
    if score.reached is None:
        return ""
    known = sorted(step for step in score.reached if step is not None)
    if len(known) < len(score.reached):
        return f"{len(known)} of {len(score.reached)} seeds"
    return f"{known[len(known) // 2]}"
