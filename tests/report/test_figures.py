"""Scales, ticks and labels of charts, and the markup that they are written in."""

import itertools
import math
import re

import numpy as np
import pytest
from flaxformer_lab.ablation.drawing import Scale, clipped, decades, runs, short, span, steps, typographic
from hypothesis import assume, given
from hypothesis import strategies as st

from flaxformer_lab.report.figures import Point, scatter, score_limits, seed_range
from flaxformer_lab.report.markup import Markup, breakable, join, tag
from flaxformer_lab.report.statistics import Interval

NUMBERS = st.floats(-1e6, 1e6)


def test_text_is_escaped_and_markup_is_not():
    inner = tag("b", "<i>", 3)
    assert inner == "<b>&lt;i&gt;3</b>" and isinstance(inner, Markup)
    assert tag("p", inner, None, ["x", ("&", inner)]) == f"<p>{inner}x&amp;{inner}</p>"
    assert tag("a", href='"><b>', class_="one two", aria_label="it's", hidden=True, title=None) == (
        '<a href="&quot;&gt;&lt;b&gt;" class="one two" aria-label="it&#x27;s" hidden></a>'
    )
    assert tag("br") == "<br>" and join(["a", None, 1.5]) == "a1.5"
    assert breakable("<a_b>") == "&lt;a_<wbr>b&gt;"


@given(NUMBERS, NUMBERS, st.integers(2, 8))
def test_ticks_are_round_few_and_on_the_scale(one, other, number):
    low, high = sorted((one, other))
    assume(high - low > 1e-3)
    ticks = Scale(low, high, 0.0, 100.0).ticks(number)
    assert len(ticks) <= 2 * number + 1
    assert all(low - 1e-6 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)
    sizes = {f"{(after - before):.6e}" for before, after in itertools.pairwise(ticks)}
    assert all(re.match(r"[125]\.0{6}|9\.9|4\.9|1\.9", size) for size in sizes)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (5200, 13600, [6000, 8000, 10000]),
        (90, 2100, [100, 200, 500, 1000, 2000]),
        (1, 10**6, [10**k for k in range(7)]),
    ],
)
def test_logarithmic_ticks(low, high, ticks):
    assert Scale(low, high, 0, 100, logarithmic=True).ticks() == pytest.approx(ticks)
    assert decades(low, high)[0] <= low


def test_a_scale_is_linear_or_logarithmic_and_draws_what_is_outside_at_its_edge():
    assert [Scale(0, 4, 10, 50)(value) for value in (0, 1, 4, 9, -3)] == [10, 20, 50, 50, 10]
    assert [Scale(0, 4, 50, 10)(value) for value in (0, 1, 4)] == [50, 40, 10]
    assert [Scale(1, 100, 0, 10, True)(value) for value in (1, 10, 100)] == pytest.approx([0, 5, 10])
    assert Scale(1, 1, 0, 10)(1) == 5


def test_numbers_are_short_and_well_set():
    assert [short(value) for value in (0.5, -2, 0, 1500, 20_000, 3e6, 4e9)] == [
        "0.5",
        "−2",
        "0",
        "1.5k",
        "20k",
        "3M",
        "4G",
    ]
    assert typographic("multi-head top-8 -0.5 [-1, +2] 1e-05") == "multi-head top-8 −0.5 [−1, +2] 1e-05"
    assert clipped("abcdef", 6) == "abcdef" and clipped("abcdefg", 6) == "abcde…"
    assert steps(0, 1, 5) == [0, 0.5, 1] and steps(3, 3, 5) == [3]


def test_a_range_holds_its_values_and_a_little_more():
    low, high = span([0.2, math.nan, 0.8, math.inf])
    assert 0.1 < low < 0.2 and 0.8 < high < 0.9
    assert span([math.nan]) == (0.0, 1.0) and span([0.0, 0.0])[0] < 0 < span([0.0, 0.0])[1]


@pytest.mark.parametrize(
    ("metric", "values", "limits"),
    [
        ("r2", [0.2, 0.9], (0, 1.04)),
        ("r2", [-0.5, 0.9], (-0.53, 1.04)),
        ("r2", [-40.0, 0.9], (-1, 1.04)),
        ("accuracy", [math.nan], (0, 1.04)),
    ],
)
def test_axes_of_scores(metric, values, limits):
    assert score_limits(metric, values) == pytest.approx(limits)


def test_an_axis_of_losses_fits_them():
    low, high = score_limits("loss", [2.0, 3.0])
    assert 1.8 < low < 2 and 3 < high < 3.2


def test_seeds_that_are_not_finite_are_left_out():
    nan = math.nan
    least, middle, most = seed_range(np.array([[1.0, nan, nan], [2.0, 5.0, nan], [4.0, nan, nan]]))
    np.testing.assert_array_equal(least, [1, 5, nan])
    np.testing.assert_array_equal(middle, [2, 5, nan])
    np.testing.assert_array_equal(most, [4, 5, nan])
    assert runs(np.array([True, True, False, True, False])) == [[0, 1], [3]] and runs(np.array([False])) == []


def test_marks_do_not_cover_one_another():
    exact = Interval(0.9, math.nan, math.nan)
    x = [Interval(value, math.nan, math.nan) for value in (1000.0, 1000.0, 1010.0, 1020.0, 5000.0, 1000.0)]
    points = [Point(str(k), f"name {k}", each, exact, k == 0) for k, each in enumerate(x, start=1)]
    svg = scatter(points, x_label="parameters", y_label="R²", metric="r2", logarithmic=True)
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="mark-label"[^>]*>(\d)', svg)
    assert sorted(mark for *_, mark in found) == ["1", "2", "3", "4", "5", "6"]
    places = [(float(x), float(y)) for x, y, _ in found]
    for one, other in itertools.combinations(places, 2):
        assert abs(one[0] - other[0]) > 6 or abs(one[1] - other[1]) > 10
