"""What every chart of the page is made of: scales, ticks, a frame with axes, marks with their intervals.

Charts are SVG without a colour of their own: classes name the role of a mark, and page.css gives roles their colours in
light and dark. Everything is rounded to a hundredth of a pixel, so that the same numbers give the same bytes.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from flaxformer_lab.ablation.markup import Markup, tag
from flaxformer_lab.ablation.statistics import Interval

Number = float | int
TEXT_WIDTH = 6.4  # pixels a letter of the charts' small type, of a wide typeface


@dataclass(frozen=True)
class Scale:
    """From values between low and high to pixels between start and end; what lies outside is drawn at the edge."""

    low: Number
    high: Number
    start: Number
    end: Number
    logarithmic: bool = False

    def __call__(self, value: Number) -> float:
        low, high, value = (self._linear(each) for each in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, number: int = 5) -> list[Number]:
        """About so many round values on the scale."""
        every = decades(self.low, self.high) if self.logarithmic else steps(self.low, self.high, number)
        slack = 1e-9 * (self.high - self.low)
        return [each for each in every if self.low - slack <= each <= self.high + slack]

    def _linear(self, value: Number) -> float:
        return math.log10(max(value, 1e-12)) if self.logarithmic else float(value)


def steps(low: Number, high: Number, number: int) -> list[Number]:
    """Multiples of 1, 2 or 5 times a power of ten from below low to above high."""
    if not high > low:
        return [low]
    rough = (high - low) / max(number - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(k * step, 12) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def decades(low: Number, high: Number) -> list[Number]:
    """Powers of ten, and round values between them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    return [factor * 10.0**power for power in powers for factor in factors]


def short(value: Number) -> str:
    """A tick's label: 0.5, 20k, 3M."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return typographic(f"{value / unit:g}{name}")
    return typographic(f"{value:g}")


def typographic(said: str) -> str:
    """With minus signs as long as the plus signs; hyphens in names stay."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", said)


def clipped(name: str, letters: int) -> str:
    """A name cut to so many letters."""
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def chart(width: Number, height: Number, *children: Any, label: str, class_: str = "chart") -> Markup:
    """An image with its text alternative, which is what a reader without eyes gets."""
    return tag("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, class_=class_)


def text(x: Number, y: Number, said: str, class_: str = "tick", anchor: str = "middle", **more: Any) -> Markup:
    """A piece of text."""
    return tag("text", said, x=float(x), y=float(y), class_=class_, text_anchor=anchor, **more)


def line(x1: Number, y1: Number, x2: Number, y2: Number, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def dot(x: Number, y: Number, class_: str, radius: Number = 4.0, said: str = "") -> Markup:
    """A round mark; what is said shows where a pointer rests on it."""
    return tag("circle", tag("title", said) if said else None, cx=float(x), cy=float(y), r=radius, class_=class_)


def path(points: Sequence[tuple[Number, Number]], class_: str, *, closed: bool = False) -> Markup:
    """A line through points."""
    said = "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return tag("path", d=f"M{said}{'Z' if closed else ''}", class_=class_)


def runs(finite: Bool[np.ndarray, " values"]) -> list[list[int]]:
    """The positions of each unbroken run of True."""
    found: list[list[int]] = [[]]
    for position, one in enumerate(finite):
        if one:
            found[-1].append(position)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def grid_x(scale: Scale, top: Number, bottom: Number, number: int = 5) -> list[Markup]:
    """Vertical lines with their values below."""
    return [
        part
        for tick in scale.ticks(number)
        for part in (
            line(scale(tick), top, scale(tick), bottom, "grid"),
            text(scale(tick), bottom + 14, short(tick)),
        )
    ]


def grid_y(scale: Scale, left: Number, right: Number, number: int = 5) -> list[Markup]:
    """Horizontal lines with their values to the left."""
    return [
        part
        for tick in scale.ticks(number)
        for part in (
            line(left, scale(tick), right, scale(tick), "grid"),
            text(left - 6, scale(tick) + 3.5, short(tick), anchor="end"),
        )
    ]


def whisker_x(interval: Interval, scale: Scale, y: Number, class_: str) -> Markup | None:
    """The interval as a horizontal line; nothing where it is not known."""
    if math.isnan(interval.low):
        return None
    return line(scale(interval.low), y, scale(interval.high), y, class_)


def whisker_y(interval: Interval, scale: Scale, x: Number, class_: str) -> Markup | None:
    """The interval as a vertical line."""
    if math.isnan(interval.low):
        return None
    return line(x, scale(interval.low), x, scale(interval.high), class_)


def span(values: Iterable[Number], margin: Number = 0.06) -> tuple[Number, Number]:
    """The finite values' range with a little room on both sides; (0, 1) where there is none."""
    finite = [float(value) for value in values if np.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = margin * (high - low) or 0.05 * max(abs(high), 1e-3)
    return low - room, high + room
