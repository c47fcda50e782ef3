"""The figures of an ablation's page: learning curves, differences with intervals, and scores against costs."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from flaxformer_lab.report.formatting import (
    format_ends,
    format_interval,
    format_mean,
    format_p_value,
    with_minus_signs,
)
from flaxformer_lab.report.markup import Markup
from flaxformer_lab.report.statistics import Interval
from flaxformer_lab.report.summary import Difference, Score
from flaxformer_lab.report.svg import COLOURS, annotate, as_svg, make_axes, styled
from flaxformer_lab.tasks import PrimaryMetric

Limits = tuple[float, float]
LETTER = 6.4  # width in pixels of a letter of the figures' small type, in a wide typeface
SIDES = {"yes": "better", "no": "worse", "open": "level"}  # of a threshold: the colour of an interval


@dataclass(frozen=True)
class Point:
    """A variant in a scatter plot. mark: what is written beside it."""

    mark: str
    name: str
    x: Interval
    y: Interval
    is_baseline: bool


def metric_range(metric: PrimaryMetric) -> float | None:
    """From the lowest value (or 0 where there is no limit) to the highest; None where there is no highest above it."""
    low, high = metric.limits
    return high - (low or 0.0) if high is not None and high > (low or 0.0) else None


def score_limits(metric: PrimaryMetric, values: Iterable[float]) -> Limits:
    """The ends of a score's axis: its whole range where it has one, else those of the values.

    Where only the lower limit is missing, the axis goes below 0 as far as the values, but by no more than the range: a
    run that diverges would flatten the rest.
    """
    finite = [float(value) for value in values if np.isfinite(value)]
    low, high = metric.limits
    size = metric_range(metric)
    if size is None:
        start, end = padded_range(finite)
        return start if low is None else max(start, low), end
    if low is None:
        low = max(1.06 * min([0.0, *finite]), -size)
    return low, high + 0.04 * size


def padded_range(values: Iterable[float], margin: float = 0.06) -> Limits:
    """The finite values' range with some room on both sides; (0, 1) where there is none."""
    finite = [float(value) for value in values if np.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = margin * (high - low) or 0.05 * max(abs(high), 1e-3)
    return low - room, high + room


def seed_range(values: Float[np.ndarray, "seeds evaluations"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The least, the median and the greatest over the seeds that are finite; NaN where none is."""
    columns = [column[np.isfinite(column)] for column in values.T]
    least, middle, most = (
        np.array([float(pick(column)) if len(column) else np.nan for column in columns])
        for pick in (np.min, np.median, np.max)
    )
    return least, middle, most


# ------------------------------------------------------------------------------------------ learning curves


@styled
def learning_curve(score: Score, baseline: Score | None, limits: Limits) -> Markup:
    """One variant's validation score by step: the median over seeds, their range, the baseline behind it."""
    figure, axes = make_axes(190, 124, (30, 20, 8, 8))
    axes.set(xlim=(0, max(score.steps)), ylim=limits, xticks=[0, score.steps[-1]])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.get_xticklabels()[-1].set_ha("right")
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.grid(visible=False, axis="x")
    if baseline is not None and baseline is not score:
        _draw_curve(axes, baseline, "baseline")
    _draw_curve(axes, score, "baseline" if baseline is score else "variant")
    bound = _bound(score)
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


def _bound(score: Score) -> float | None:
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
    """Each variant's paired difference with its interval, around the baseline's 0, and in numbers beside it."""
    names = [_shortened(each.variant, 24) for each in differences]
    left = 12 + LETTER * max(map(len, names))
    figure, axes = make_axes(620, 50 + 22 * len(differences), (left, 40, 165, 10))
    ends = [end for d in differences for end in (0.0, d.interval.mean, d.interval.low, d.interval.high)]
    low, high = padded_range(ends)
    size = metric_range(metric)
    axes.set(xlim=(low if size is None else max(low, -2 * size), high), ylim=(len(differences) - 0.5, -0.5))
    axes.set_xlabel(f"difference in {metric.label}; right is better")
    axes.set_yticks(range(len(names)), names, color=COLOURS["ink"])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=COLOURS["baseline"], linewidth=1.4)
    _draw_intervals(axes, [each.interval for each in differences], [each.direction for each in differences])
    beside = axes.get_yaxis_transform()
    for row, each in enumerate(differences):
        _draw_mark(axes, each.interval.mean, row, each.direction, _describe_difference(each, metric))
        for format_, offset, role in ((format_mean, 43, "ink"), (format_ends, 161, "muted")):
            text = with_minus_signs(format_(each.interval, metric.digits, signed=True))
            x = 1 + offset / axes.bbox.width
            axes.text(x, row, text, ha="right", va="center", color=COLOURS[role], transform=beside)
    every = "; ".join(f"{d.variant} {format_interval(d.interval, metric.digits, signed=True)}" for d in differences)
    label = f"Paired difference in {metric.label} to {differences[0].baseline}, with 95% intervals: {every}"
    return as_svg(figure, with_minus_signs(label))


def _describe_difference(difference: Difference, metric: PrimaryMetric) -> str:
    interval = with_minus_signs(format_interval(difference.interval, metric.digits, signed=True))
    return f"{difference.variant}: {interval}, Holm p {format_p_value(difference.corrected_p) or '?'}"


@styled
def threshold_figure(interval: Interval, threshold: float, answer: str, question: str, digits: int) -> Markup:
    """A difference with its interval beside the threshold that decides."""
    figure, axes = make_axes(320, 36, (6, 14, 6, 2))
    axes.set(
        xlim=padded_range([0.0, threshold, interval.mean, interval.low, interval.high], 0.1), ylim=(-1, 1), yticks=[]
    )
    pixels = np.ptp(axes.transData.transform([(0.0, 0.0), (threshold, 0.0)])[:, 0])
    axes.set_xticks([threshold] if pixels < 24 else [0.0, threshold])
    axes.xaxis.set_major_formatter(lambda value, _: with_minus_signs(f"{value:g}"))
    axes.grid(visible=False)
    axes.axhline(0, color=COLOURS["grid"], linewidth=1)
    axes.plot([0, 0], [-0.5, 0.5], color=COLOURS["baseline"], linewidth=1.4)
    annotate(axes.axvline(threshold, color=COLOURS["bound"], linestyle="--", linewidth=1.6), "threshold")
    _draw_intervals(axes, [interval], [SIDES[answer]])
    _draw_mark(axes, interval.mean, 0, SIDES[answer])
    side = {"yes": "above", "no": "below", "open": "around"}[answer]
    label = f"{question} {format_interval(interval, digits)}, {side} the threshold of {threshold:g}"
    return as_svg(figure, with_minus_signs(label), "chart strip")


def _draw_intervals(axes: Axes, intervals: Sequence[Interval], roles: Sequence[str]) -> None:
    """A line for each, row by row."""
    low, high = (np.clip([getattr(each, end) for each in intervals], *axes.get_xlim()) for end in ("low", "high"))
    colors = [COLOURS[role] for role in roles]
    annotate(axes.hlines(range(len(low)), low, high, colors, linewidth=2, clip_on=False), "intervals")


def _draw_mark(axes: Axes, mean: float, row: float, role: str, title: str = "") -> None:
    """A dot, hollow where it is level."""
    options = {"markerfacecolor": COLOURS["surface" if role == "level" else role], "markeredgewidth": 1.8}
    mean = np.clip(mean, *axes.get_xlim())
    (mark,) = axes.plot([mean], [row], "o", markersize=9, color=COLOURS[role], clip_on=False, **options)
    annotate(mark, f"mark {role}", title)


# ------------------------------------------------------------------------------------------ scatter plots


@styled
def scatter(
    points: Sequence[Point], *, x_label: str, y_label: str, metric: PrimaryMetric, logarithmic: bool = False
) -> Markup:
    """Each variant's score against something else that it has. Marks carry the variant's number in the table."""
    figure, axes = make_axes(400, 290, (46, 46, 14, 10))
    shown = [each for each in points if math.isfinite(each.x.mean) and math.isfinite(each.y.mean)]
    axes.set_ylim(score_limits(metric, _ends_of(each.y for each in shown)))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.yaxis.set_label_coords(0.03, 0.56, figure.transFigure)  # clear of wide numbers
    if logarithmic:
        values = [max(each.x.mean, 1.0) for each in shown] or [1.0]
        low, high = min(values) / 1.25, max(values) * 1.25
        axes.set(xscale="log", xlim=(low, high))
        factors = (1, 2, 5) if high < 1000 * low else (1,)
        axes.xaxis.set_major_locator(MaxNLocator(4) if high < 5 * low else LogLocator(subs=factors))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.set_xlim(padded_range([0.0, *_ends_of(each.x for each in shown)]))
        axes.xaxis.set_major_locator(MaxNLocator(6))
    if shown:
        _draw_points(axes, shown, metric)
        places = axes.transData.transform([_clipped(axes, each.x.mean, each.y.mean) for each in shown])
        _draw_labels(figure, axes, [each.mark for each in shown], places)
    every = "; ".join(f"{p.name} {format_interval(p.y, metric.digits)} at {_format_x(p.x)}" for p in points)
    return as_svg(figure, with_minus_signs(f"{y_label} against {x_label}: {every}"))


def _draw_points(axes: Axes, points: Sequence[Point], metric: PrimaryMetric) -> None:
    colors = [COLOURS["baseline" if each.is_baseline else "variant"] for each in points]
    x, y = np.transpose([_clipped(axes, each.x.mean, each.y.mean) for each in points])
    left, lower = np.transpose([_clipped(axes, each.x.low, each.y.low) for each in points])
    right, upper = np.transpose([_clipped(axes, each.x.high, each.y.high) for each in points])
    axes.hlines(y, left, right, colors, linewidth=1.2, alpha=0.6)
    axes.vlines(x, lower, upper, colors, linewidth=1.2, alpha=0.6)
    for point, color, *place in zip(points, colors, x, y, strict=True):
        base, surface = point.is_baseline, COLOURS["surface"]
        face, edge, size, width = (surface, color, 10, 2.4) if base else (color, surface, 8, 1)
        looks = {"markerfacecolor": face, "markeredgecolor": edge, "markersize": size, "markeredgewidth": width}
        (mark,) = axes.plot(*place, "o", clip_on=False, **looks)
        title = f"{point.name}: {format_interval(point.y, metric.digits)} at {_format_x(point.x)}"
        annotate(mark, "point baseline" if base else "point", with_minus_signs(title))


def _draw_labels(figure: Figure, axes: Axes, marks: Sequence[str], places: Float[np.ndarray, "points 2"]) -> None:
    """Each mark as near to its point as it finds room, with a thin line to it where that is not beside it."""
    width, height = figure.bbox.size
    inside = axes.bbox.padded(4)
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for mark, (x, y) in zip(marks, places, strict=True):
        half = LETTER * len(mark) / 2 + 1
        for radius, across, up in _around(x, y, half):
            box = (across - half, up - 6, across + half, up + 6)
            fits = inside.contains(*box[:2]) and inside.contains(*box[2:])
            if fits and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                if radius > 12:
                    ends = [x / width, across / width], [y / height, up / height]
                    line = Line2D(*ends, transform=figure.transFigure, color=COLOURS["level"], linewidth=0.7)
                    figure.add_artist(line)
                text = figure.text(across / width, (up - 3.5) / height, mark, ha="center", color=COLOURS["ink"])
                annotate(text, "mark-label")
                break


def _around(x: float, y: float, half: float) -> Iterator[tuple[float, float, float]]:
    """(distance, x, y) of places for a text of this half width around a point, the near ones first."""
    for radius in (10, 18, 27, 37, 48, 60, 74):
        for eighth in (0, 1, 7, 2, 6, 3, 5, 4, 0.5, 7.5, 1.5, 6.5, 2.5, 5.5, 3.5, 4.5):
            angle = eighth * math.pi / 4
            yield radius, x + (radius + half - 4) * math.cos(angle), y + radius * math.sin(angle)


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _clipped(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """What lies outside the axes is drawn at their edge."""
    return float(np.clip(x, *axes.get_xlim())), float(np.clip(y, *axes.get_ylim()))


def _ends_of(intervals: Iterable[Interval]) -> list[float]:
    return [end for each in intervals for end in (each.mean, each.low, each.high)]


def _format_x(interval: Interval) -> str:
    return f"{interval.mean:,.0f}" if interval.mean == round(interval.mean) > 1 else format_interval(interval)


def _shortened(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
