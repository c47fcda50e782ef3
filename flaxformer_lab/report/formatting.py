"""Values as text, the same in Markdown, on the page and in a terminal."""

import math
import re

from flaxformer_lab.report.claims import Decision, Finding
from flaxformer_lab.report.statistics import Interval
from flaxformer_lab.report.summary import Score
from flaxformer_lab.tasks import PrimaryMetric


def format_label(metric: PrimaryMetric) -> str:
    """A metric's name in print, with its direction where that is not the usual one."""
    return metric.label if metric.higher_is_better else f"{metric.label} (less is better)"


def format_findings(decision: Decision) -> str:
    """The difference of each comparison with its interval."""
    return "; ".join(f"{f.comparison.question} {format_finding(f)}" for f in decision.findings)


def format_finding(finding: Finding) -> str:
    """One answer with its difference and threshold."""
    if finding.interval is None:
        return "not measured"
    difference = format_interval(finding.interval, finding.digits)
    return f"{finding.answer}: {difference} against {finding.comparison.threshold:g}"


def format_interval(interval: Interval, digits: int = 3, *, signed: bool = False) -> str:
    """0.500 [0.400, 0.600]; the mean alone where nothing is known of its interval."""
    ends = format_ends(interval, digits, signed=signed)
    return f"{format_mean(interval, digits, signed=signed)} {ends}".rstrip()


def format_mean(interval: Interval, digits: int = 3, *, signed: bool = False) -> str:
    """0.500, or `not finite` where a run diverged."""
    return f"{interval.mean:{'+' if signed else ''}.{digits}f}" if math.isfinite(interval.mean) else "not finite"


def format_ends(interval: Interval, digits: int = 3, *, signed: bool = False) -> str:
    """[0.400, 0.600], or nothing where they are not known."""
    low, high = (f"{end:{'+' if signed else ''}.{digits}f}" for end in (interval.low, interval.high))
    return "" if math.isnan(interval.low) else f"[{low}, {high}]"


def format_p_value(p: float) -> str:
    """A p-value to three digits."""
    return "" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def format_bound(score: Score) -> str:
    """Theory's bound and whether it held."""
    if score.bound is None or score.bound_held is None:
        return ""
    sign, held = "≤" if score.metric.higher_is_better else "≥", "held" if score.bound_held else "BROKEN"
    return f"{sign} {score.bound['value']:.{score.metric.digits}f} {held}"


def format_steps_to_threshold(score: Score) -> str:
    """The median of the steps to the threshold, or how many seeds reached it where not all did."""
    if score.reached is None:
        return ""
    known = sorted(step for step in score.reached if step is not None)
    if len(known) < len(score.reached):
        return f"{len(known)} of {len(score.reached)} seeds"
    return f"{known[len(known) // 2]}"


def format_count(number: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def with_minus_signs(text: str) -> str:
    """The text with minus signs as long as plus signs; hyphens in names stay."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def format_learning_rate(score: Score) -> str:
    """The chosen rate, with what speaks against a conclusion from it."""
    edge = f"{score.rate_edge} tried" if score.rate_edge else ""
    notes = ", ".join(filter(None, (edge, "not converged" if score.converged is False else "")))
    return f"{score.learning_rate:g}" + (f" ({notes})" if notes else "")
