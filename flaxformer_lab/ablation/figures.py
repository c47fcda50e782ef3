"""The charts of an ablation's page: learning curves, differences with intervals, and scores against costs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flaxformer_lab.ablation.drawing import (
    TEXT_WIDTH,
    Number,
    Scale,
    chart,
    clipped,
    dot,
    grid_x,
    grid_y,
    line,
    path,
    runs,
    short,
    span,
    text,
    typographic,
    whisker_x,
    whisker_y,
)
from flaxformer_lab.ablation.markup import Markup, tag
from flaxformer_lab.ablation.statistics import Interval
from flaxformer_lab.ablation.summary import Difference, Score
from flaxformer_lab.ablation.wording import format_ends, format_interval, format_mean, format_metric, format_p_value

Box = tuple[Number, Number, Number, Number]  # left, top, right, bottom
CLEAR = 0.05  # a difference whose corrected p is below this is drawn and counted as one
LOWEST = -1.0  # of an axis of R2, which has no lower end: a run that diverges would flatten the rest


@dataclass(frozen=True)
class Point:
    """A variant in a chart of two figures. mark: what is written beside it."""

    mark: str
    name: str
    x: Interval
    y: Interval
    is_baseline: bool


def is_clear(difference: Difference) -> bool:
    """Whether chance is an unlikely cause, after correction for how many variants were looked at."""
    return difference.corrected_p < CLEAR


def direction(difference: Difference) -> str:
    """Better, worse or level: the class of its mark."""
    if not is_clear(difference):
        return "level"
    return "better" if difference.interval.mean > 0 else "worse"


def score_limits(metric: str, values: Iterable[Number]) -> tuple[Number, Number]:
    """The ends of a score's axis: 0 to 1 for shares, lower where R2 goes below, and what there is for losses."""
    finite = [float(value) for value in values if np.isfinite(value)]
    if metric not in ("r2", "accuracy"):
        return span(finite)
    low = min([0.0, *finite])
    return (max(low * 1.06, LOWEST) if low < 0 else 0.0), 1.04


def curves(
    score: Score, baseline: Score | None, limits: tuple[Number, Number], width: Number = 190, height: Number = 124
) -> Markup:
    """One variant's validation score while it trains: the median over seeds, their range, the baseline behind it."""
    left, right, top, bottom = 30, width - 8, 8, height - 20
    x = Scale(0, max(score.steps), left, right)
    y = Scale(*limits, bottom, top)
    behind = [] if baseline is None or baseline is score else _band(baseline, x, y, "of-baseline")
    bound = _bound(score)
    return chart(
        width,
        height,
        grid_y(y, left, right, 3),
        text(left, height - 5, "0"),
        text(right, height - 5, short(score.steps[-1]), anchor="end"),
        behind,
        _band(score, x, y, "of-baseline" if baseline is score else "of-variant"),
        None if bound is None else line(left, y(bound), right, y(bound), "bound"),
        label=_format_curve(score, baseline, bound),
    )


def _band(score: Score, x: Scale, y: Scale, class_: str) -> list[Markup]:
    low, middle, high = seed_range(score.curves)
    parts = []
    for run in runs(np.isfinite(middle)):
        upper = [(x(score.steps[k]), y(high[k])) for k in run]
        lower = [(x(score.steps[k]), y(low[k])) for k in reversed(run)]
        points = [(x(score.steps[k]), y(middle[k])) for k in run]
        parts += [path(upper + lower, f"band {class_}", closed=True), path(points, f"curve {class_}")]
        if len(run) == 1:
            parts.append(dot(*points[0], f"end {class_}", radius=2.5))
    return parts


def seed_range(values: Float[np.ndarray, "seeds evaluations"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The least, the median and the greatest over the seeds that are finite; NaN where none is."""
    columns = [column[np.isfinite(column)] for column in values.T]
    least, middle, most = (
        np.array([float(pick(column)) if len(column) else np.nan for column in columns])
        for pick in (np.min, np.median, np.max)
    )
    return least, middle, most


def _bound(score: Score) -> Number | None:
    return None if score.bound is None or score.bound["metric"] != score.metric else float(score.bound["value"])


def _format_curve(score: Score, baseline: Score | None, bound: Number | None) -> str:
    said = (
        f"Validation {format_metric(score.metric)} of {score.variant} over {score.steps[-1]} steps {_format_end(score)}"
    )
    if baseline is not None and baseline is not score:
        said += f"; the baseline {_format_end(baseline)}"
    return typographic(said + ("" if bound is None else f"; theory allows {bound:.3f}"))


def _format_end(score: Score) -> str:
    low, middle, high = (each[-1] for each in seed_range(score.curves))
    if not np.isfinite(middle):
        return "is not finite at the end"
    return f"ends at a median of {middle:.3f}, seeds from {low:.3f} to {high:.3f}"


def forest(differences: Sequence[Difference], metric: str, width: Number = 620) -> Markup:
    """Each variant's paired difference with its interval, around the baseline's 0, and in figures beside it."""
    row, top = 22, 10
    right = width - 165
    bottom = top + row * len(differences)
    left = 12 + TEXT_WIDTH * min(max(len(each.variant) for each in differences), 24)
    ends = [end for d in differences for end in (0.0, d.interval.mean, d.interval.low, d.interval.high)]
    low, high = span(ends)
    x = Scale(max(low, -2.0) if metric == "r2" else low, high, left, right)
    return chart(
        width,
        bottom + 40,
        grid_x(x, top, bottom),
        line(x(0), top - 4, x(0), bottom, "zero"),
        [_forest_row(each, x, width, top + row * (k + 0.5)) for k, each in enumerate(differences)],
        text((left + right) / 2, bottom + 33, f"difference in {format_metric(metric)}; right is better", "axis"),
        label=_format_forest(differences, metric),
    )


def _forest_row(difference: Difference, x: Scale, width: Number, y: Number) -> Markup:
    name, interval = difference.variant, difference.interval
    p_value = format_p_value(difference.corrected_p) or "?"
    said = f"{name}: {typographic(format_interval(interval, signed=True))}, Holm p {p_value}"
    parts = [tag("title", said), text(x.start - 10, y + 4, clipped(name, 24), "name", "end")]
    if math.isfinite(interval.mean):
        class_ = direction(difference)
        parts += [whisker_x(interval, x, y, f"whisker {class_}"), dot(x(interval.mean), y, f"mark {class_}", 4.5)]
    numbers = (
        text(width - 122, y + 4, typographic(format_mean(interval, signed=True)), "name", "end"),
        text(width - 4, y + 4, typographic(format_ends(interval, signed=True)), "tick", "end"),
    )
    return tag("g", parts, numbers)


def _format_forest(differences: Sequence[Difference], metric: str) -> str:
    each = "; ".join(f"{d.variant} {format_interval(d.interval, signed=True)}" for d in differences)
    return typographic(
        f"Paired difference in {format_metric(metric)} to {differences[0].baseline}, with 95% intervals: {each}"
    )


def scatter(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    metric: str,
    logarithmic: bool = False,
    width: Number = 400,
    height: Number = 290,
) -> Markup:
    """Each variant's score against something else that it has. Marks carry the variant's number in the table."""
    left, right, top, bottom = 46, width - 14, 10, height - 46
    shown = [each for each in points if math.isfinite(each.x.mean) and math.isfinite(each.y.mean)]
    y = Scale(*score_limits(metric, _ends_of(each.y for each in shown)), bottom, top)
    x = Scale(*_x_limits(shown, logarithmic), left, right, logarithmic)
    places = [(x(each.x.mean), y(each.y.mean)) for each in shown]
    return chart(
        width,
        height,
        grid_x(x, top, bottom, 6),
        grid_y(y, left, right),
        text((left + right) / 2, height - 10, x_label, "axis"),
        text(0, 0, y_label, "axis", transform=f"translate(12 {(top + bottom) / 2:g}) rotate(-90)"),
        [_point(each, place, x, y) for each, place in zip(shown, places, strict=True)],
        _marks(shown, places, (left, top, right, bottom)),
        label=_format_scatter(points, x_label, y_label),
    )


def _x_limits(points: Sequence[Point], logarithmic: bool) -> tuple[Number, Number]:
    if not logarithmic:
        return span([0.0, *_ends_of(each.x for each in points)])
    values = [max(each.x.mean, 1.0) for each in points] or [1.0]
    return min(values) / 1.25, max(values) * 1.25


def _ends_of(intervals: Iterable[Interval]) -> list[Number]:
    return [end for each in intervals for end in (each.mean, each.low, each.high)]


def _point(point: Point, place: tuple[Number, Number], x: Scale, y: Scale) -> Markup:
    class_ = "of-baseline" if point.is_baseline else "of-variant"
    said = f"{point.name}: {format_interval(point.y)} at {_format_x(point.x)}"
    return tag(
        "g",
        whisker_y(point.y, y, place[0], f"whisker thin {class_}"),
        whisker_x(point.x, x, place[1], f"whisker thin {class_}"),
        dot(*place, f"point {class_}", 5.0 if point.is_baseline else 4.0, typographic(said)),
    )


def _marks(points: Sequence[Point], places: Sequence[tuple[Number, Number]], box: Box) -> list[Markup]:
    """Each mark as near to its point as it finds room, with a thin line to it where that is not beside it."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    parts = []
    for point, (x, y) in zip(points, places, strict=True):
        half = TEXT_WIDTH * len(point.mark) / 2 + 1
        for radius, across, up in _around(x, y, half):
            room = (across - half, up - 6, across + half, up + 6)
            if _within(room, box) and not any(_overlap(room, other) for other in taken):
                taken.append(room)
                if radius > 12:
                    parts.append(line(x, y, across, up, "leader"))
                parts.append(text(across, up + 3.5, point.mark, "mark-label"))
                break
    return parts


def _around(x: Number, y: Number, half: Number) -> Iterable[tuple[Number, Number, Number]]:
    """(distance, x, y) of places for a text of this half width around a point, the near ones first."""
    for radius in (10, 18, 27, 37, 48, 60, 74):
        for eighth in (0, 1, 7, 2, 6, 3, 5, 4, 0.5, 7.5, 1.5, 6.5, 2.5, 5.5, 3.5, 4.5):
            angle = eighth * math.pi / 4
            yield radius, x + (radius + half - 4) * math.cos(angle), y - radius * math.sin(angle)


def _within(room: Box, box: Box) -> bool:
    return room[0] >= box[0] and room[1] >= box[1] - 4 and room[2] <= box[2] + 8 and room[3] <= box[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _format_x(interval: Interval) -> str:
    return f"{interval.mean:,.0f}" if interval.mean == round(interval.mean) > 1 else format_interval(interval)


def _format_scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    each = "; ".join(f"{p.name} {format_interval(p.y)} at {_format_x(p.x)}" for p in points)
    return typographic(f"{y_label} against {x_label}: {each}")


def strip(interval: Interval, threshold: Number, question: str, width: Number = 320) -> Markup:
    """A difference with its interval beside the threshold that decides."""
    low, high = span([0.0, threshold, interval.mean, interval.low, interval.high], 0.1)
    x = Scale(low, high, 6, width - 6)
    side = "above" if interval.low > threshold else "below" if interval.high <= threshold else "around"
    return chart(
        width,
        36,
        line(6, 12, width - 6, 12, "grid"),
        line(x(threshold), 2, x(threshold), 22, "bound"),
        line(x(0), 7, x(0), 17, "zero"),
        text(x(0), 33, "0") if abs(x(0) - x(threshold)) > 24 else None,
        text(x(threshold), 33, short(threshold), "tick strong"),
        whisker_x(interval, x, 12, f"whisker {side}"),
        dot(x(interval.mean), 12, f"mark {side}", 5.0) if math.isfinite(interval.mean) else None,
        label=typographic(f"{question} {format_interval(interval)}, {side} the threshold of {threshold:g}"),
        class_="chart strip",
    )
