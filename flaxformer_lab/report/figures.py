"""The figures of an ablation's page: learning curves, differences with intervals, and scores against costs."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import BboxBase

from flaxformer_lab.ablation.claim_config import Cost
from flaxformer_lab.report.designs import Factorial
from flaxformer_lab.report.formatting import (
    format_ends,
    format_interval,
    format_label,
    format_mean,
    format_p_value,
    with_minus_signs,
)
from flaxformer_lab.report.fronts import cost_of, on_front, validation_scores
from flaxformer_lab.report.markup import Markup
from flaxformer_lab.report.statistics import Interval, bootstrap_interval
from flaxformer_lab.report.summary import Difference, Score, metric_range
from flaxformer_lab.report.svg import COLOURS, annotate, as_svg, make_axes, styled
from flaxformer_lab.tasks import PrimaryMetric

Number = int | float
Limits = tuple[Number, Number]
HUGE = 1e100  # larger values are drawn at the edge of the axis
LETTER = 6.4  # width in pixels of a letter of the figures' small type, in a wide typeface
LABEL_WIDTH, LABEL_HEIGHT = 13, 10  # of a variant's number
ALL_AROUND = (0, 2, -2, 4, -4, 6, -6, 8, 1, -1, 3, -3, 5, -5, 7, -7)
TO_THE_RIGHT = (0, 2, -2, 1, -1, 3, -3, 4, -4)
LINES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dashed and dotted"}
SIDES = {"yes": "better", "no": "worse", "open": "level"}  # of a threshold: the colour of an interval


def score_limits(metric: PrimaryMetric, values: Iterable[Number]) -> Limits:
    """The ends of a score's axis: those of the values, inside the limits of the score.

    Where only the lower limit is missing, values below 0 count by no more than the range: a run that diverges would
    flatten the rest.
    """
    low, high = metric.limits
    size = metric_range(metric)
    start, end = padded_range(values if low is not None or size is None else (max(value, -size) for value in values))
    if size is not None:  # a hundredth of the range and no less on both sides: no axis of rounding errors
        start, end = min(start, (start + end) / 2 - 0.01 * size), max(end, (start + end) / 2 + 0.01 * size)
    start, end = start if low is None else max(start, low), end if high is None else min(end, high + 0.04 * (size or 0))
    return (start, end) if start < end else (start - 1, end + 1)


def padded_range(values: Iterable[Number], margin: float = 0.06) -> Limits:
    """The range of the values that are not huge, with some room on both sides; (0, 1) where there is none."""
    finite = [float(value) for value in values if abs(value) < HUGE]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = margin * (high - low) or 0.05 * max(abs(high), 1e-3)
    return low - room, high + room


def seed_range(values: Float[np.ndarray, "seeds evaluations"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The least, the median and the greatest over the seeds that are finite; NaN where none is."""
    finite = np.ma.masked_invalid(values)
    low, middle, high = (np.ma.filled(pick(finite, axis=0), np.nan) for pick in (np.ma.min, np.ma.median, np.ma.max))
    return low, middle, high


# ------------------------------------------------------------------------------------------ learning curves


@styled
def learning_curve(score: Score, baseline: Score | None, limits: Limits, steps: int) -> Markup:
    """One variant's validation score by step: the median over seeds, their range, the baseline behind it.

    limits, steps: the ends of both axes, the same for all variants of a task.
    """
    figure, axes = make_axes(190, 124, (40, 20, 8, 8))
    axes.set(xlim=(0, steps), ylim=limits, xticks=[0, steps])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.get_xticklabels()[-1].set_ha("right")
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.grid(visible=False, axis="x")
    if baseline is not None and baseline is not score:
        _draw_curve(axes, baseline, "baseline")
    _draw_curve(axes, score, "baseline" if baseline is score else "variant")
    bound = bound_of(score)
    if bound is not None:
        axes.axhline(np.clip(bound, *limits), color=COLOURS["bound"], linestyle="--", linewidth=1.6, clip_on=False)
    return as_svg(figure, _describe_curve(score, baseline, bound))


def _draw_curve(axes: Axes, score: Score, role: str) -> None:
    low, middle, high = (np.clip(each, *axes.get_ylim()) for each in seed_range(score.curves))
    known = np.pad(np.isfinite(middle), 1)
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])  # a line needs two points
    options = {"color": COLOURS[role], "clip_on": False}
    axes.fill_between(score.steps, low, high, alpha=0.18, linewidth=0, where=known[1:-1], **options)
    (line,) = axes.plot(
        score.steps,
        middle,
        marker="o",
        markersize=5,
        markeredgewidth=0,
        markevery=alone.tolist(),
        linewidth=2,
        **options,
    )
    annotate(line, f"curve {role}")


@styled
def all_curves(scores: Sequence[Score], baseline: str, *, against_flops: bool) -> Markup:
    """Every variant's validation score, the median over seeds, against its updates, or the FLOPs of its training.

    A line ends with the variant's number in the table.
    """
    metric, label = scores[0].metric, "training FLOPs of a seed" if against_flops else "updates"
    medians = [seed_range(score.curves)[1] for score in scores]
    across = [score.training_flops if against_flops else np.array(score.steps, float) for score in scores]
    curves = [*enumerate(zip(scores, across, medians, strict=True), 1)]
    shown = [(n, curve) for n, curve in curves if np.isfinite(curve[2][-1]) and curve[1][-1] > 0]  # a control: 0 FLOPs
    axes = _chart_axes(metric, label, [value for _, (_, _, median) in shown for value in median])
    low, high = (pick(pick(x) for _, (_, x, _) in shown) if shown else 1.0 for pick in (min, max))
    if against_flops:
        _set_logarithmic(axes, max(low / 1.25, 1.0), min(max(2.0 * high, 10.0), HUGE))
    else:
        axes.set_xlim(0, 1.25 * high)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    drawn = [(x, np.clip(median, *axes.get_ylim())) for _, (_, x, median) in shown]
    for (_, (score, x, median)), points in reversed([*zip(shown, drawn, strict=True)]):  # the first, above the others
        is_baseline = score.variant == baseline
        looks = {"color": COLOURS["baseline" if is_baseline else "variant"], "linewidth": 2.4 if is_baseline else 1.4}
        (line,) = axes.plot(*points, clip_on=False, **looks)
        annotate(line, "curve", with_minus_signs(_describe_line(score, x, median)))
    if shown:
        ends = [(x[-1], y[-1]) for x, y in drawn]
        lines = [axes.transData.transform(np.stack(each, axis=-1)) for each in drawn]
        _draw_numbers(axes, [number for number, _ in shown], axes.transData.transform(ends), TO_THE_RIGHT, lines)
    every = "; ".join(_describe_line(*curve) for _, curve in curves)
    return as_svg(axes.get_figure(), with_minus_signs(f"Validation {format_label(metric)} against {label}: {every}"))


def _describe_line(score: Score, x: Float[np.ndarray, " points"], median: Float[np.ndarray, " points"]) -> str:
    if not np.isfinite(median[[0, -1]]).all() or x[-1] > HUGE:
        return f"{score.variant} is not finite"
    (first, last), digits = (
        (EngFormatter(places=1, sep="")(x[k]).replace(".0", "") for k in (0, -1)),
        score.metric.digits,
    )
    return f"{score.variant} from {median[0]:.{digits}f} at {first} to {median[-1]:.{digits}f} at {last}"


def bound_of(score: Score) -> float | None:
    """What theory allows of the score that is drawn."""
    return None if score.bound is None or score.bound["metric"] != score.metric.name else float(score.bound["value"])


def _describe_curve(score: Score, baseline: Score | None, bound: float | None) -> str:
    text = f"Validation {score.metric.label} of {score.variant} over {score.steps[-1]} steps {_describe_end(score)}"
    if baseline is not None and baseline is not score:
        text += f"; the baseline {_describe_end(baseline)}"
    return with_minus_signs(text if bound is None else f"{text}; theory allows {bound:.{score.metric.digits}f}")


def _describe_end(score: Score) -> str:
    low, middle, high = (each[-1] for each in seed_range(score.curves))
    if not np.isfinite(middle):
        return "is not finite at the end"
    low, middle, high = (f"{each:.{score.metric.digits}f}" for each in (low, middle, high))
    return f"ends at a median of {middle}, seeds from {low} to {high}"


# ------------------------------------------------------------------------------------------ intervals


@styled
def forest(differences: Sequence[Difference], metric: PrimaryMetric) -> Markup:
    """Each variant's paired difference with its interval, around the baseline's 0, and in numbers under its name.

    Narrow enough to be read whole on a telephone, with the line at 0.
    """
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in (each.variant for each in differences)]
    figure, axes = make_axes(424, 50 + 32 * len(differences), (180, 40, 14, 10))
    ends = [end for d in differences for end in (0.0, d.interval.mean, d.interval.low, d.interval.high)]
    size = metric_range(metric)
    least = 0.01 * (size or max((abs(end) for end in ends if abs(end) < HUGE), default=0.0) or 1.0)
    low, high = padded_range([*ends, -least, least])
    axes.set(xlim=(low if size is None else max(low, -2 * size), high), ylim=(len(differences) - 0.5, -0.5))
    axes.set_xlabel(f"difference in {metric.label}; right is better")
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=COLOURS["baseline"], linewidth=1.4)
    _draw_intervals(axes, [each.interval for each in differences], [each.direction for each in differences])
    beside = axes.get_yaxis_transform()
    for row, each in enumerate(differences):
        _draw_mark(axes, each.interval.mean, row, each.direction, _describe_difference(each, metric))
        mean, ends = (
            with_minus_signs(format_(each.interval, metric.digits, signed=True))
            for format_ in (format_mean, format_ends)
        )
        for text, line, offset, role in (
            (names[row], -0.21, 12, "ink"),
            (mean, 0.21, 12 + LETTER * len(ends) + (6 if ends else 0), "ink"),
            (ends, 0.21, 12, "muted"),
        ):
            x = -offset / axes.bbox.width
            axes.text(x, row + line, text, ha="right", va="center", color=COLOURS[role], transform=beside)
    every = "; ".join(f"{d.variant} {format_interval(d.interval, metric.digits, signed=True)}" for d in differences)
    label = f"Paired difference in {metric.label} to {differences[0].baseline}, with 95% intervals: {every}"
    return as_svg(figure, with_minus_signs(label))


def _describe_difference(difference: Difference, metric: PrimaryMetric) -> str:
    interval = with_minus_signs(format_interval(difference.interval, metric.digits, signed=True))
    return f"{difference.variant}: {interval}, Holm p {format_p_value(difference.corrected_p) or '?'}"


@styled
def threshold_figure(
    interval: Interval, threshold: float, answer: str, question: str, digits: int, *, within: bool = False
) -> Markup:
    """A difference with its interval beside the threshold that decides, or the two that it may lie between."""
    figure, axes = make_axes(320, 36, (6, 14, 6, 2))
    ends = _thresholds(threshold, within=within)
    axes.set(xlim=padded_range([0.0, *ends, interval.mean, interval.low, interval.high], 0.1), ylim=(-1, 1), yticks=[])
    pixels = np.ptp(axes.transData.transform([(0.0, 0.0), (threshold, 0.0)])[:, 0])
    axes.set_xticks(ends if pixels < 24 else [0.0, *ends])
    axes.xaxis.set_major_formatter(lambda value, _: with_minus_signs(f"{value:g}"))
    axes.grid(visible=False)
    axes.axhline(0, color=COLOURS["grid"], linewidth=1)
    axes.plot([0, 0], [-0.5, 0.5], color=COLOURS["baseline"], linewidth=1.4)
    for end in ends:
        annotate(axes.axvline(end, color=COLOURS["bound"], linestyle="--", linewidth=1.6), "threshold")
    _draw_intervals(axes, [interval], [SIDES[answer]])
    _draw_mark(axes, interval.mean, 0, SIDES[answer])
    side = _side(interval, threshold, within=within)
    label = f"{question} {answer}: {format_interval(interval, digits)}, {side} {'±' * within}{threshold:g}"
    return as_svg(figure, with_minus_signs(label), "chart strip")


def _thresholds(threshold: float, *, within: bool) -> list[float]:
    return [-threshold, threshold] if within else [threshold]


def _side(interval: Interval, threshold: float, *, within: bool) -> str:
    """Where the interval lies, whatever the answer: a correction, or seeds that failed, may leave that open."""
    low, high = (interval.mean if np.isnan(end) else end for end in (interval.low, interval.high))
    if within and max(-low, high) < threshold:
        return "within the thresholds of"
    if within:
        return f"{'outside of' if max(low, -high) >= threshold else 'around an end of'} the thresholds of"
    return f"{'above' if low > threshold else 'below' if high <= threshold else 'around'} the threshold of"


@runtime_checkable
class Compared(Protocol):
    """A difference or a ratio that was compared with a threshold."""

    question: str
    interval: Interval
    threshold: float
    answer: str
    digits: int
    within: bool


@styled
def comparisons_figure(rows: Sequence[Compared], *, is_ratio: bool = False) -> Markup:
    """Numbered differences with their intervals around 0, each beside its threshold; ratios on a log axis around 1."""
    figure, axes = make_axes(400, 52 + 26 * len(rows), (26, 40, 14, 6))
    thresholds = [_thresholds(row.threshold, within=row.within) for row in rows]
    values = [v for r, ends in zip(rows, thresholds, strict=True) for v in (*ends, *dataclasses.astuple(r.interval))]
    axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
    axes.set_yticklabels(range(1, len(rows) + 1))
    if is_ratio:
        known = [value for value in (1.0, *values) if 0 < value < HUGE]
        _set_logarithmic(axes, min(known) / 1.25, max(known) * 1.25)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(padded_range([0.0, *values]))
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("ratio; dashed: its threshold" if is_ratio else "difference; dashed: its threshold")
    axes.grid(visible=False, axis="y")
    annotate(axes.axvline(1.0 if is_ratio else 0.0, color=COLOURS["baseline"], linewidth=1.4), "zero")
    looks = {"color": COLOURS["bound"], "linestyle": (0, (2, 1)), "linewidth": 1.6}
    for place, end in ((place, end) for place, ends in enumerate(thresholds) for end in ends):
        annotate(axes.plot([end] * 2, [place - 0.38, place + 0.38], **looks)[0], "threshold")
    _draw_intervals(axes, [row.interval for row in rows], [SIDES[row.answer] for row in rows])
    for place, row in enumerate(rows):
        _draw_mark(axes, row.interval.mean, place, SIDES[row.answer], row.question)
    every = "; ".join(
        f"{k} {row.question} {row.answer}, {format_interval(row.interval, row.digits)} against "
        f"{'±' * row.within}{row.threshold:g}"
        for k, row in enumerate(rows, 1)
    )
    return as_svg(figure, with_minus_signs(f"{'Ratios' if is_ratio else 'Differences'} with 95% intervals: {every}"))


def _draw_intervals(axes: Axes, intervals: Sequence[Interval], roles: Sequence[str]) -> None:
    """A line for each, row by row."""
    low, high = (np.clip([getattr(each, end) for each in intervals], *axes.get_xlim()) for end in ("low", "high"))
    colors = [COLOURS[role] for role in roles]
    annotate(axes.hlines(range(len(low)), low, high, colors, linewidth=2, clip_on=False), "intervals")


def _draw_mark(axes: Axes, mean: Number, row: Number, role: str, title: str = "") -> None:
    """A dot, hollow where it is level."""
    options = {"markerfacecolor": COLOURS["surface" if role == "level" else role], "markeredgewidth": 1.8}
    mean = np.clip(mean, *axes.get_xlim())
    (mark,) = axes.plot([mean], [row], "o", markersize=9, color=COLOURS[role], clip_on=False, **options)
    annotate(mark, f"mark {role}", title)


# ------------------------------------------------------------------------------------------ scatter plots


@styled
def scatter(
    scores: Sequence[Score], across: Mapping[str, Interval], baseline: str, label: str, *, logarithmic: bool = False
) -> Markup:
    """Each variant's score against another value of it, by variant. Marks carry the variant's number in the table."""
    metric = scores[0].metric
    points = [(number, each, across[each.variant]) for number, each in enumerate(scores, 1) if each.variant in across]
    shown = [each for each in points if math.isfinite(each[1].interval.mean) and math.isfinite(each[2].mean)]
    x, y = (
        np.reshape([(each.low, each.mean, each.high) for each in intervals], (-1, 3))
        for intervals in ([x for *_, x in shown], [score.interval for _, score, _ in shown])
    )
    axes = _chart_axes(metric, label, y.ravel())
    figure = axes.get_figure()
    if logarithmic:
        x = np.clip(x, 1.0, HUGE)
        _set_logarithmic(axes, *(x[:, 1].min() / 1.25, x[:, 1].max() * 1.25) if shown else (1.0, 10.0))
    else:
        axes.set_xlim(padded_range([0.0, *x.ravel()]))
        axes.xaxis.set_major_locator(MaxNLocator(6))
    if shown:
        _draw_points(axes, shown, np.clip(x, *axes.get_xlim()), np.clip(y, *axes.get_ylim()), baseline)
    every = "; ".join(_describe_point(score, x) for _, score, x in points)
    return as_svg(figure, with_minus_signs(f"{format_label(metric)} against {label}: {every}"))


@styled
def dose_curves(series: Mapping[str, Sequence[Score]], numbers: Mapping[str, int]) -> Markup:
    """Score against parameters, a line for each structure through its doses, with intervals and the table's numbers."""
    scores = list({score.variant: score for each in series.values() for score in each}.values())
    metric, places = (
        scores[0].metric,
        {s.variant: max(s.parameters, 1) for s in scores},
    )  # fixed maps have no parameters
    y = np.array([(s.interval.low, s.interval.mean, s.interval.high) for s in scores])
    axes = _chart_axes(metric, "parameters", y.ravel())
    _set_logarithmic(axes, min(places.values()) / 1.25, max(places.values()) * 1.25)
    for each, style in zip(series.values(), itertools.cycle(LINES), strict=False):
        line = np.clip([s.interval.mean for s in each], *axes.get_ylim())
        axes.plot([places[s.variant] for s in each], line, style, color=COLOURS["variant"], linewidth=1.6, alpha=0.7)
    points = [(numbers[s.variant], s, Interval(float(s.parameters), math.nan, math.nan)) for s in scores]
    x = np.repeat(np.array([*places.values()], np.float64)[:, None], 3, axis=1)
    _draw_points(axes, points, x, np.clip(y, *axes.get_ylim()), "")
    named = {s.variant: _describe_point(s, size) for _, s, size in points}
    every = "; ".join(f"{name}: {', '.join(named[s.variant] for s in each)}" for name, each in series.items())
    return as_svg(axes.get_figure(), with_minus_signs(f"{format_label(metric)} against parameters. {every}"))


# ------------------------------------------------------------------------------------------ Pareto fronts

COSTS: dict[Cost, str] = {
    "float32_bytes": "bytes of the file",
    "int8_bytes": "bytes of the file",
    "forward_flops": "FLOPs of an example",
    "float32_latency": "microseconds an example, 1 thread",
    "int8_latency": "microseconds an example, 1 thread",
}
PRECISIONS = ("float32", "int8")


def costs_of_use(precision: str) -> tuple[Cost, ...]:
    """Of a model in float32 or int8: bytes, FLOPs, and latency."""
    return tuple(cost for cost in COSTS if cost == "forward_flops" or cost.startswith(precision))


@styled
def front_chart(families: Mapping[str, Sequence[Score]], cost: Cost, precision: str) -> Markup:
    """Each family's score against one cost: its front as a line, with the family's number at the end."""
    figure, axes = make_axes(370, 290, (46, 46, 14, 10))
    axes.yaxis.set_label_coords(0.03, 0.56, figure.transFigure)
    return as_svg(figure, _draw_fronts(axes, families, cost, precision))


@styled
def front_panels(families: Mapping[str, Sequence[Score]]) -> Markup:
    """The fronts of all costs in one figure, float32 above int8, with the names of the families."""
    figure = Figure(figsize=(1080 / 72, 640 / 72))
    labels = []
    for row, precision in enumerate(PRECISIONS):
        for column, cost in enumerate(costs_of_use(precision)):
            place = ((52 + 350 * column) / 1080, (345 - 290 * row) / 640, 300 / 1080, 225 / 640)
            axes = figure.add_axes(place)
            labels.append(_draw_fronts(axes, families, cost, precision))
            axes.set_title(precision, loc="left", fontsize=11)
    names = " · ".join(f"{number} {name} ({style})" for number, (name, style) in enumerate(front_styles(families), 1))
    figure.text(52 / 1080, 618 / 640, names, color=COLOURS["ink"])
    return as_svg(figure, " ".join(f"{label}." for label in labels))


def front_styles(families: Mapping[str, Sequence[Score]]) -> list[tuple[str, str]]:
    """Each family with its kind of line in words: the first is solid and thick, in a colour of its own."""
    return [
        *zip(families, ("thick", *itertools.islice(itertools.cycle(LINES.values()), len(families) - 1)), strict=True)
    ]


def _draw_fronts(axes: Axes, families: Mapping[str, Sequence[Score]], cost: Cost, precision: str) -> str:
    """Draws the fronts on axes; returns them in words."""
    metric = next(iter(families.values()))[0].metric
    judged = {name: _judged(members, precision) for name, members in families.items()}
    costs = {name: np.array([cost_of(each, cost) for each in members]) for name, members in families.items()}
    every, ends = [each for intervals in judged.values() for each in intervals], np.concatenate([*costs.values()])
    axes.set(xlabel=COSTS[cost], ylabel=format_label(metric))
    axes.set_ylim(score_limits(metric, [end for each in every for end in (each.low, each.mean, each.high)]))
    _set_logarithmic(axes, ends.min() / 1.25, ends.max() * 1.6)
    styles, tips, drawn, words = itertools.cycle(LINES), [], [], []
    for number, (name, members) in enumerate(families.items()):
        places = on_front(costs[name], validation_scores(members))
        means = np.array([each.mean for each in judged[name]])
        x, y = np.append(costs[name][places], axes.get_xlim()[1] / 1.2), np.append(means[places], means[places][-1])
        looks = {"color": COLOURS["baseline" if number else "variant"], "linewidth": 1.4 if number else 2.4}
        y = np.clip(y, *axes.get_ylim())
        annotate(axes.plot(x, y, next(styles) if number else "-", **looks)[0], "front", name)
        low, high = (
            np.clip([getattr(each, end) for each in judged[name]], *axes.get_ylim()) for end in ("low", "high")
        )
        axes.vlines(costs[name], low, high, looks["color"], linewidth=1, alpha=0.5)
        for place, (score, interval, at) in enumerate(zip(members, judged[name], costs[name], strict=True)):
            face = looks["color"] if place in places else COLOURS["surface"]
            up = np.clip(interval.mean, *axes.get_ylim())
            (mark,) = axes.plot(at, up, "o", color=looks["color"], markerfacecolor=face, markersize=5)
            said = f"{score.variant} {format_interval(interval, metric.digits)} at {at:,.0f}"
            annotate(mark, "point", with_minus_signs(said))
        tips.append((x[-1], y[-1]))
        drawn.append(axes.transData.transform(np.stack([x, y], axis=-1)))
        steps = ", ".join(f"{means[place]:.{metric.digits}f} at {costs[name][place]:,.0f}" for place in places)
        words.append(f"{name} {steps}")
    _draw_numbers(axes, range(1, len(families) + 1), axes.transData.transform(tips), TO_THE_RIGHT, drawn)
    what = f"{format_label(metric)} of {precision} against {COSTS[cost]}, front by front"
    return with_minus_signs(f"{what}: {'; '.join(words)}")


def _judged(members: Sequence[Score], precision: str) -> list[Interval]:
    """What the members' files score."""
    if precision == "float32":
        return [each.interval for each in members]
    return [bootstrap_interval(each.measures["int8_score"], limits=each.metric.limits) for each in members]


@styled
def factorial_grid(found: Factorial, metric: PrimaryMetric) -> Markup:
    """The mean score of each pair of levels as a grid of numbers; the better, the darker."""
    (rows, columns), means = found.levels, found.means
    figure, axes = make_axes(90 + 52 * len(columns), 60 + 24 * len(rows), (84, 6, 6, 54))
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="left")
    axes.xaxis.tick_top()
    heights = means if metric.higher_is_better else -means
    shades = np.zeros(heights.shape)  # also where a run is not finite
    if (known := np.isfinite(heights)).any():
        shades[known] = (heights[known] - heights[known].min()) / (np.ptp(heights[known]) or 1.0)
    without_ends = lambda mean: Interval(mean, math.nan, math.nan)  # noqa: E731
    said = {place: format_mean(without_ends(mean), metric.digits) for place, mean in np.ndenumerate(means)}
    for (row, column), text in said.items():
        place, looks = (
            (column - 0.48, row - 0.46),
            {"color": COLOURS["variant"], "alpha": 0.06 + 0.44 * shades[row, column]},
        )
        axes.add_patch(Rectangle(place, 0.96, 0.92, linewidth=0, **looks))
        axes.text(column, row, with_minus_signs(text), ha="center", va="center", color=COLOURS["ink"])
    every = (f"{rows[r]} and {columns[c]} {text}" for (r, c), text in said.items())
    return as_svg(
        figure, with_minus_signs(f"{format_label(metric)} by {' and '.join(found.names)}: {'; '.join(every)}")
    )


def _draw_points(
    axes: Axes,
    points: Sequence[tuple[int, Score, Interval]],
    x: Float[np.ndarray, "points 3"],
    y: Float[np.ndarray, "points 3"],
    baseline: str,
) -> None:
    """Marks with their numbers, and lines from the lowest to the highest value of each interval."""
    colors = [COLOURS["baseline" if score.variant == baseline else "variant"] for _, score, _ in points]
    axes.hlines(y[:, 1], x[:, 0], x[:, 2], colors, linewidth=1.2, alpha=0.6)
    axes.vlines(x[:, 1], y[:, 0], y[:, 2], colors, linewidth=1.2, alpha=0.6)
    pixels = axes.transData.transform(np.stack([x[:, 1], y[:, 1]], axis=-1))
    surface = COLOURS["surface"]
    for (_, score, interval), color, across, up in zip(points, colors, x[:, 1], y[:, 1], strict=True):
        is_baseline = score.variant == baseline
        face, edge, size, width = (surface, color, 10, 2.4) if is_baseline else (color, surface, 8, 1)
        looks = {"markerfacecolor": face, "markeredgecolor": edge, "markersize": size, "markeredgewidth": width}
        (mark,) = axes.plot(across, up, "o", clip_on=False, **looks)
        annotate(mark, "point", with_minus_signs(_describe_point(score, interval)))
    ends = [((a, mid), (b, mid)) for (a, _, b), (_, mid, _) in zip(x, y, strict=True)]
    ends += [((mid, a), (mid, b)) for (_, mid, _), (a, _, b) in zip(x, y, strict=True)]
    lines = [axes.transData.transform(each) for each in ends if np.isfinite(each).all()]
    _draw_numbers(axes, [number for number, *_ in points], pixels, lines=lines)


def _draw_numbers(
    axes: Axes,
    numbers: Sequence[int],
    points: Float[np.ndarray, "points 2"],
    angles: Sequence[int] = ALL_AROUND,
    lines: Sequence[Float[np.ndarray, "corners 2"]] = (),
) -> None:
    """The variant's number beside each point, in pixels; with a line to it where there was no room."""
    in_pixels = {"xycoords": "figure pixels", "textcoords": "figure pixels"}
    places = label_places(points, axes.bbox.padded(4), angles, lines)
    for number, place, label_place in zip(numbers, points, places, strict=True):
        is_far = np.linalg.norm(label_place - place) > 24
        line = {"arrowstyle": "-", "color": COLOURS["level"], "linewidth": 0.7} if is_far else None
        looks = {"ha": "center", "va": "center", "color": COLOURS["ink"], "arrowprops": line}
        annotate(axes.annotate(str(number), place, label_place, **in_pixels, **looks), "mark-label")


def _chart_axes(metric: PrimaryMetric, label: str, values: Iterable[Number]) -> Axes:
    """Axes of a chart of scores with these values."""
    figure, axes = make_axes(400, 290, (46, 46, 14, 10))
    axes.set(xlabel=label, ylabel=format_label(metric), ylim=score_limits(metric, values))
    axes.yaxis.set_label_coords(0.03, 0.56, figure.transFigure)  # clear of wide numbers
    return axes


def _set_logarithmic(axes: Axes, low: Number, high: Number) -> None:
    """A logarithmic axis across, with a few short labels."""
    axes.set(xscale="log", xlim=(low, high))
    factors = (1, 2, 5) if high < 1000 * low else (1,)
    axes.xaxis.set_major_locator(MaxNLocator(4) if high < 5 * low else LogLocator(subs=factors))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def label_places(
    points: Float[np.ndarray, "points 2"],
    box: BboxBase,
    angles: Sequence[int] = ALL_AROUND,
    lines: Sequence[Float[np.ndarray, "corners 2"]] = (),
) -> Float[np.ndarray, "points 2"]:
    """Where the label of each point is centred: inside the box, near the point, over no other label or point.

    angles: the directions in which it may lie, in eighths of a half turn, the best first. lines: over none of them,
    where there is room.
    """
    offsets = [
        radius * np.array([1.2 * math.cos(angle * math.pi / 8), math.sin(angle * math.pi / 8)])
        for radius in (12, 19, 28, 38, 49, 61, 75)
        for angle in angles
    ]
    taken, along = list(points), np.concatenate([np.empty((0, 2)), *map(_along, lines)])
    for point in points:
        places = [point + offset for offset in offsets if box.contains(*(point + offset))]
        free = [place for place in places if _is_clear(place, np.array(taken), (LABEL_WIDTH, LABEL_HEIGHT))]
        best = (place for place in free[: len(angles)] if _is_clear(place, along, (LABEL_WIDTH / 2, LABEL_HEIGHT / 2)))
        taken.append(next(best, free[0] if free else point))
    return np.array(taken[len(points) :])


def _is_clear(place: Float[np.ndarray, " 2"], others: Float[np.ndarray, "others 2"], size: tuple[float, float]) -> bool:
    return bool(np.all(np.any(np.abs(others - place) > size, axis=1)))


def _along(line: Float[np.ndarray, "corners 2"]) -> Float[np.ndarray, "points 2"]:
    """Points of a line, two pixels apart."""
    lengths = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    at = np.arange(0.0, lengths[-1], 2.0)
    return np.stack([np.interp(at, lengths, line[:, axis]) for axis in (0, 1)], axis=-1)


def _describe_point(score: Score, x: Interval) -> str:
    words = f"{x.mean:,.0f}" if x.mean > 1 and float(x.mean).is_integer() else format_interval(x)
    return f"{score.variant} {format_interval(score.interval, score.metric.digits)} at {words}"
