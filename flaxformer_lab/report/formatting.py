"""Values as text, the same in Markdown, on the page and in a terminal."""

import collections
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence

from flaxformer_lab.ablation.claim_config import BASELINE
from flaxformer_lab.ablation.grid import AblationConfig
from flaxformer_lab.report.claims import Decision, Finding
from flaxformer_lab.report.designs import Factorial
from flaxformer_lab.report.fronts import cost_of
from flaxformer_lab.report.statistics import Interval, bootstrap_interval
from flaxformer_lab.report.summary import Difference, Score, Summary
from flaxformer_lab.tasks import PrimaryMetric

TITLE = "Ablation report"  # where the config names no question
DIRECTIONS = {"worse": "clearly worse", "better": "clearly better"}
VERDICTS = ("supported", "refuted", "supported only when", "undecided")


def lead(summary: Summary, decisions: Sequence[Decision]) -> str:
    """The answer in one or two sentences."""
    parts = []
    for verdict in VERDICTS:
        claims = [each.claim.name for each in decisions if each.verdict == verdict]
        if claims:
            parts.append(f"{verdict}: {', '.join(claims)}")
    verdicts = f"{sentence('; '.join(parts))}." if parts else ""
    finished = f"{len(summary.finished)} of {len(summary.grid.cells)} cells have finished"
    if not summary.scores:
        return f"{verdicts} No cell has finished yet.".strip()
    if summary.failures or summary.missing:
        return f"{verdicts} {finished}: what follows may change.".strip()
    return verdicts or f"All {len(summary.scores)} cells have finished."


def sentence(words: str) -> str:
    """With a capital letter."""
    return words[:1].upper() + words[1:]


def format_provenance(summary: Summary) -> list[tuple[str, str]]:
    """How the results were made: command, versions, device, commit, own data; each with its cells where they differ."""
    made = []
    for name in ("command", "versions", "device", "commit", "data"):
        texts = collections.Counter(each.provenance[name] for each in summary.scores if name in each.provenance)
        several = len(texts) > 1
        said = [f"{text} ({format_count(number, 'cell')})" if several else text for text, number in texts.items()]
        made += [(name, "; ".join(said))] if said else []
    return made


def format_label(metric: PrimaryMetric) -> str:
    """A metric's name in print, with its direction where that is not the usual one."""
    return metric.label if metric.higher_is_better else f"{metric.label} (less is better)"


def in_words(summary: Summary, task: str) -> str:
    """A task's result in a sentence or two; empty where no cell has finished."""
    name, scores = summary.grid.config.baseline, [each for each in summary.scores if each.task == task]
    base = summary.score(task, name)
    if base is None:
        missing = f"The baseline, {name}, has not finished here, so nothing can be compared with it yet."
        return missing if scores else ""
    who = "The baseline" if name == BASELINE else f"The baseline, {name},"
    reaches = "reaches" if math.isfinite(base.interval.mean) else "is"
    text = f"{who} {reaches} {format_interval(base.interval, base.metric.digits)} in {format_label(base.metric)}."
    found = [_direction_in_words(each) for each in summary.differences if each.task == task]
    if found:
        counts = [(found.count(words), words) for words in dict.fromkeys((*DIRECTIONS.values(), *found))]
        text += f" Of the other {len(found)}: {', '.join(f'{number} {words}' for number, words in counts if number)}."
    return with_minus_signs(text)


def _direction_in_words(difference: Difference) -> str:
    """Equal only where a test says so: a difference that is not clear is open."""
    if difference.is_same:
        return "the same function as the baseline"
    if difference.direction in DIRECTIONS:
        return DIRECTIONS[difference.direction]
    return f"equal within {difference.margin:g}" if difference.is_equivalent else "open"


def format_search(summary: Summary) -> str:
    """How the learning rates were found: how many a cell tried, and whether the best lie inside."""
    rates = summary.grid.config.learning_rates
    tried = sorted(len(each.by_rate) for each in summary.scores) or [len(rates)]
    if tried[-1] == 1:
        used = sorted({rate for each in summary.scores for rate in each.by_rate}) or rates
        return f"learning rate given: {', '.join(f'{rate:g}' for rate in used)}"
    number = f"{tried[0]}" if tried[0] == tried[-1] else f"{tried[0]} to {tried[-1]}"
    edges = sum(each.rate_edge is not None for each in summary.scores)
    inside = "inside its grid" if not edges else f"at an edge of its grid in {format_count(edges, 'cell')}"
    return f"best of {number} learning rates a cell" + (f", {inside}" if summary.scores else "")


def format_findings(decision: Decision) -> str:
    """The difference of each comparison with its interval."""
    return "; ".join(f"{f.comparison.question} {format_finding(f)}" for f in decision.findings)


def format_finding(finding: Finding) -> str:
    """One answer with its difference and threshold."""
    if finding.interval is None:
        return "not measured"
    difference = format_interval(finding.interval, finding.digits)
    return f"{finding.answer}: {difference} against {format_threshold(finding)}{format_conditions(finding)}"


def format_threshold(finding: Finding) -> str:
    """0.2, or ±0.2 where the difference must lie within it."""
    return f"{'±' if finding.comparison.within else ''}{finding.comparison.threshold:g}"


def format_reach(decision: Decision) -> tuple[str, str]:
    """How far a verdict reaches: what it is at equal FLOPs, and for which thresholds it stays."""
    other = decision.at_equal_flops
    if other is None and any(each.comparison.at_equal for each in decision.findings):
        equal = "Equal training FLOPs: not asked, since models are compared by what they cost where they run."
    elif other is None:
        equal = "Equal FLOPs: nothing to compare, since it rests on measures of mixing, which are taken at the end."
    elif other.verdict == decision.verdict == "undecided" or other.conclusion == decision.conclusion:
        equal = "Equal FLOPs: the verdict is the same."
    else:
        equal = f"Equal FLOPs: it would be {format_verdict(other.verdict, other.reason)}."
    spans = [
        f"{format_span(each.stays)}, here {format_threshold(each)} ({each.comparison.question.rstrip('?')})"
        for each in decision.findings
        if each.stays is not None
    ]
    return (
        equal,
        f"Thresholds at which the verdict stays: {'; '.join(spans)}." if spans else "Thresholds: nothing is decided.",
    )


def format_verdict(verdict: str, reason: str) -> str:
    """A verdict with its reason, or with its condition."""
    return f"{verdict} {reason}" if verdict == "supported only when" else f"{verdict}: {reason.removeprefix('open: ')}"


def format_errors(decision: Decision) -> str:
    """Whether the intervals have the error of test examples beside that of seeds; empty where nothing is measured."""
    known = [each for each in decision.findings if each.interval is not None]
    over_examples = [each.comparison.question.rstrip("?") for each in known if each.over_examples]
    if not known:
        return ""
    if len(over_examples) in (0, len(known)):
        return f"Intervals: over seeds{' and over the test examples that they share' if over_examples else ' alone'}."
    return f"Intervals: over seeds; also over the test examples that they share for {'; '.join(over_examples)}."


def format_errors_of_scores(scores: Sequence[Score]) -> str:
    """The same of the scores of a task."""
    if all(each.examples is None for each in scores):
        return "Intervals: over seeds alone."
    without = [each.variant for each in scores if each.examples is None]
    text = "Intervals: over seeds and over the test examples that they share"
    return text + (f"; over seeds alone for {', '.join(without)}." if without else ".")


def format_updates(decision: Decision, summary: Summary) -> str:
    """From the fewest to the most updates that the claim's finished cells were trained for, task by task."""
    updates: dict[str, set[int]] = {}
    for _, part in decision.claim.quantities:
        score, cell = summary.score(part.task, part.variant), summary.grid.cell(part.task, part.variant)
        if score is None or cell is None:
            continue
        if cell.control is None and cell.config.optimizer.name != "ridge":  # both are solved, without updates
            updates.setdefault(part.task, set()).add(score.steps[-1])
    spans = {task: (min(steps), max(steps)) for task, steps in updates.items()}
    return ", ".join(
        f"{low:,} on {task}" if low == high else f"{low:,} to {high:,} on {task}" for task, (low, high) in spans.items()
    )


def format_reasons(decision: Decision) -> str:
    """Why the thresholds are what they are; empty where nothing says so."""
    compared = [(format_threshold(each), each.comparison.because) for each in decision.findings]
    reasons = dict.fromkeys(f"{threshold}, since {because}" for threshold, because in compared if because)
    return f"Why these thresholds: {'; '.join(reasons)}." if reasons else ""


def format_span(span: tuple[float, float]) -> str:
    """`up to 0.971`, rounded inwards to three digits."""
    low, high = (_rounded_inwards(end, towards) for end, towards in zip(span, (math.ceil, math.floor), strict=True))
    if math.isinf(low) and math.isinf(high):
        return "any"
    return f"up to {high:g}" if math.isinf(low) else f"from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")


def _rounded_inwards(value: float, towards: Callable[[float], int]) -> float:
    if not value or math.isinf(value):
        return value
    unit = 10.0 ** (2 - math.floor(math.log10(abs(value))))
    return towards(value * unit) / unit


def format_conditions(finding: Finding) -> str:
    """What a finding rests on beside its interval: the corrected p, and what is left without seeds that failed."""
    p_value = format_p_value(finding.corrected_p)
    text = "" if not p_value else f", p {p_value}" if p_value.startswith("<") else f", p = {p_value}"
    if finding.stays_to_ratio is not None:
        text += f", the same with costs {finding.stays_to_ratio:g} times as high or low"
    if finding.rest is None:
        return text
    return (
        f"{text}; without {format_count(finding.failed, 'failed seed')} {format_interval(finding.rest, finding.digits)}"
    )


def format_interval(interval: Interval, digits: int = 3, *, signed: bool = False) -> str:
    """0.500 [0.400, 0.600]; the mean alone where nothing is known of its interval."""
    ends = format_ends(interval, digits, signed=signed)
    return f"{format_mean(interval, digits, signed=signed)} {ends}".rstrip()


def format_mean(interval: Interval, digits: int = 3, *, signed: bool = False) -> str:
    """0.500, or `not finite` where a run diverged."""
    return f"{interval.mean:{'+' if signed else ''}z.{digits}f}" if math.isfinite(interval.mean) else "not finite"


def format_ends(interval: Interval, digits: int = 3, *, signed: bool = False) -> str:
    """[0.400, 0.600], or nothing where they are not known."""
    low, high = (f"{end:{'+' if signed else ''}z.{digits}f}" for end in (interval.low, interval.high))
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
    return f"{statistics.median(known):.10g}"


def format_share(score: Score) -> str:
    """4 of 5 [0.28, 0.99] seeds reached the threshold, with the mean score of those where some did not."""
    hits, number = int(score.succeeded.sum()), len(score.values)
    text = f"{hits} of {number} {format_ends(score.share, 2)}"
    if score.of_successes is None or hits == number:
        return text
    return f"{text}, mean {format_interval(score.of_successes, score.metric.digits)}"


def format_improvement(difference: Difference) -> str:
    """The share of seeds for which the variant is better, with its interval."""
    return "" if difference.is_same else format_interval(difference.probability_of_improvement, 2)


def format_clarity(difference: Difference) -> str:
    """What may be said of a difference in words."""
    if difference.is_same:
        return "the same function"
    words = {"better": "better", "worse": "worse"}.get(difference.direction, "")
    equal = f"within ±{difference.margin:g}" if difference.is_equivalent else ""
    return ", ".join(each for each in (words, equal) if each) or "open"


def format_count(number: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_seeds(config: AblationConfig, tasks: Iterable[str]) -> str:
    """5 seeds; 5 to 10 seeds where tasks have seeds of their own."""
    counts = [len(config.seeds_of(task)) for task in tasks]
    return format_count(max(counts), "seed") if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} seeds"


def with_minus_signs(text: str) -> str:
    """The text with minus signs as long as plus signs; hyphens in names stay."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def format_learning_rate(score: Score) -> str:
    """The chosen rate, with what speaks against a conclusion from it."""
    edge = f"{score.rate_edge} tried" if score.rate_edge else ""
    notes = ", ".join(filter(None, (edge, "not converged" if score.converged is False else "")))
    return f"{score.learning_rate:g}" + (f" ({notes})" if notes else "")


def effects_in_words(found: Factorial) -> str:
    """What each factor and their interaction explain."""
    words = []
    for each in found.effects:
        p = f", p {format_p_value(each.p_value)}" if math.isfinite(each.p_value) else ""
        words.append(f"{each.name} {format_interval(each.share, 2)}{p}")
    return f"Shares of the variance over all runs (ε²), with 95% intervals over seeds: {'; '.join(words)}."


COSTS_OF_USE = ("float32 bytes", "int8 bytes", "FLOPs", "float32 µs", "int8 µs", "float32 score", "int8 score")


def format_cost_of_use(score: Score) -> list[str]:
    """What a variant's exported files cost and score, as COSTS_OF_USE names it; latencies are medians over seeds."""
    costs = ("float32_bytes", "int8_bytes", "forward_flops", "float32_latency", "int8_latency")
    found = [cost_of(score, cost) for cost in costs]
    shown = [
        "" if value is None else f"{value:,.{1 if 'latency' in cost else 0}f}"
        for cost, value in zip(costs, found, strict=True)
    ]
    int8 = bootstrap_interval(score.measures["int8_score"], limits=score.metric.limits)
    return [*shown, *(format_interval(each, score.metric.digits) for each in (score.interval, int8))]
