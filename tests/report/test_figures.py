"""The axes of figures, and what is drawn on them."""

import itertools
import math
import re

import numpy as np
import pytest
from matplotlib.transforms import Bbox

from flaxformer_lab.report.debate import Row
from flaxformer_lab.report.designs import Factorial
from flaxformer_lab.report.figures import (
    TO_THE_RIGHT,
    all_curves,
    comparisons_figure,
    factorial_grid,
    label_places,
    learning_curve,
    metric_range,
    padded_range,
    scatter,
    score_limits,
    seed_range,
    threshold_figure,
)
from flaxformer_lab.report.statistics import Interval
from flaxformer_lab.tasks import PrimaryMetric


def metric(low, high):
    return PrimaryMetric("m", "M", higher_is_better=True, limits=(low, high))


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ((0, 1), 1),
        ((None, 1), 1),
        ((0.5, 1), 0.5),
        ((0, 100), 100),
        ((-3, -1), 2),
        ((0, None), None),
        ((None, 0), None),
        ((None, None), None),
    ],
)
def test_the_range_of_a_metric(limits, size):
    assert metric_range(metric(*limits)) == size


@pytest.mark.parametrize(
    ("limits", "values", "ends"),
    [
        ((None, 1), [0.2, 0.9], (0.158, 0.942)),
        ((None, 1), [0.97, 1.0], (0.9682, 1.0018)),  # scores that are close are told apart
        ((None, 1), [-0.5, 0.9], (-0.584, 0.984)),
        ((None, 1), [-40.0, 0.9], (-1.114, 1.014)),
        ((0, 1), [math.nan], (0, 1)),
        ((0, 1), [0.0, 1.0], (0, 1.04)),
        ((None, 1), [0.0, 0.0], (-0.01, 0.01)),
        ((0, 100), [20, 90], (15.8, 94.2)),
        ((0, None), [0.01, 1.01], (0, 1.07)),
        ((None, None), [2.0, 3.0], (1.94, 3.06)),
    ],
)
def test_axes_of_scores(limits, values, ends):
    assert score_limits(metric(*limits), values) == pytest.approx(ends)


def test_a_range_holds_its_values_and_a_little_more():
    low, high = padded_range([0.2, math.nan, 0.8, math.inf])
    assert 0.1 < low < 0.2 and 0.8 < high < 0.9
    assert padded_range([math.nan]) == (0.0, 1.0)
    assert padded_range([0.0, 0.0])[0] < 0 < padded_range([0.0, 0.0])[1]


def test_seeds_that_are_not_finite_are_left_out():
    nan = math.nan
    least, middle, most = seed_range(np.array([[1.0, nan, nan], [2.0, 5.0, nan], [4.0, nan, nan]]))
    np.testing.assert_array_equal(least, [1, 5, nan])
    np.testing.assert_array_equal(middle, [2, 5, nan])
    np.testing.assert_array_equal(most, [4, 5, nan])


SHARE = metric(0, 1)


def exactly(value):
    return Interval(float(value), math.nan, math.nan)


@pytest.fixture
def scatter_of(score_of):
    """The function that draws variants with one score, and these values on the other axis."""

    def draw(across, score=0.5, metric=SHARE):
        intervals = {f"name {k}": exactly(value) for k, value in enumerate(across)}
        scores = [score_of(variant=name, interval=exactly(score), metric=metric) for name in intervals]
        return scatter(scores, intervals, "name 0", "parameters", logarithmic=True)

    return draw


def test_labels_cover_neither_one_another_nor_a_point(scatter_of):
    svg = scatter_of([1000.0, 1000.0, 1010.0, 1020.0, 5000.0, 1000.0], 0.9)
    labels = re.findall(r'<g class="mark-label"><text x="([\d.]+)" y="([\d.]+)"[^>]*>(\d)', svg)
    assert sorted(label for *_, label in labels) == ["1", "2", "3", "4", "5", "6"]
    places = [(float(x), float(y) - 4) for x, y, _ in labels]
    points = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert len(points) == 6
    for one, other in [*itertools.combinations(places, 2), *itertools.product(places, points)]:
        assert abs(one[0] - other[0]) > 10 or abs(one[1] - other[1]) > 9


def test_labels_stay_inside_and_near():
    box = Bbox([[0, 0], [300, 200]])
    corners = np.array([[0.0, 0.0], [300.0, 200.0], [150.0, 100.0]])
    places = label_places(corners, box)
    assert all(box.contains(*place) for place in places)
    assert np.linalg.norm(places - corners, axis=1).max() < 16


def test_a_number_lies_beside_the_lines_of_its_interval_and_of_longer_curves():
    box, point = Bbox([[0, 0], [300, 200]]), np.array([[150.0, 100.0]])
    interval = [np.array([[100.0, 100.0], [200.0, 100.0]]), np.array([[150.0, 50.0], [150.0, 150.0]])]
    (across, up) = np.abs(label_places(point, box, lines=interval)[0] - point[0])
    assert across > 6 and up > 5
    longer = np.array([[0.0, 100.0], [300.0, 100.0]])
    (place,) = label_places(point, box, TO_THE_RIGHT, [longer])
    assert abs(place[1] - 100) > 5 and abs(label_places(point, box, TO_THE_RIGHT)[0, 1] - 100) < 1
    # Where lines are everywhere a label still has a place of its own.
    everywhere = [np.array([[0.0, y], [300.0, y]]) for y in range(0, 200, 6)]
    assert np.linalg.norm(label_places(point, box, TO_THE_RIGHT, everywhere)[0] - point[0]) > 10


@pytest.mark.parametrize(("low", "high"), [(5200, 13600), (90, 2100), (1, 10**6), (70, 70)])
def test_a_logarithmic_axis_has_some_short_labels(scatter_of, low, high):
    labels = re.findall(r'<text x="[\d.]+" y="25\d[^>]*>([^<]*)<', scatter_of([low, high]))
    assert 2 <= len(labels) <= 9 and all(re.fullmatch(r"\d+(\.\d)?[kM]?", label) for label in labels)


@pytest.mark.parametrize("value", [0.0, 1e308, -1.0])
def test_values_that_no_axis_can_hold_are_drawn_at_its_edge(scatter_of, value):
    loss = PrimaryMetric("loss", "loss", higher_is_better=False)
    assert scatter_of([100.0, value]).count("<circle") == 2
    assert scatter_of([100.0, 200.0], value, loss).count("<circle") == 2


def test_a_scatter_plot_may_be_empty(scatter_of):
    assert "<circle" not in scatter_of([100.0, 200.0], math.nan)


@pytest.mark.parametrize(("value", "role"), [(exactly(math.nan), "level"), (Interval(0.3, 0.25, 0.35), "better")])
def test_what_is_not_finite_is_not_drawn(value, role):
    answer = "open" if role == "level" else "yes"
    svg = threshold_figure(value, 0.2, answer, "is it so?", 3)
    assert "nan" not in svg and ("<circle" in svg) == (role == "better")


def test_all_curves_end_with_their_numbers_at_their_own_cost(score_of):
    """The thick line is the baseline's; what diverged is named, and not drawn."""
    known = {"steps": (1, 2), "metric": SHARE}
    scores = [
        score_of(**known, curves=np.array([[0.2, 0.6]]), forward_flops=10, batch_size=10),
        score_of(**known, curves=np.array([[0.1, 0.6]]), forward_flops=20, batch_size=10, variant="dear"),
        score_of(**known, curves=np.array([[0.1, math.nan]]), variant="lost"),
    ]
    updates, flops = (all_curves(scores, "baseline", against_flops=each) for each in (False, True))
    said = "baseline from 0.200 at {} to 0.600 at {}; dear from 0.100 at {} to 0.600 at {}; lost is not finite"
    assert said.format("1", "2", "1", "2") in updates and said.format("300", "600", "600", "1.2k") in flops
    for svg, same in ((updates, True), (flops, False)):
        assert re.findall(r'<g class="mark-label"><text[^>]*>(\d)', svg) == ["1", "2"]
        dear, base = re.findall(r'<g class="curve"><title>.*?</title><path d="([^"]*)" style="([^"]*)"', svg)
        assert ("var(--baseline)" in base[1], "2.4" in base[1], "var(--variant)" in dear[1]) == (True, True, True)
        (dear_x, dear_y), (base_x, base_y) = (map(float, path.split()[-2:]) for path, _ in (dear, base))
        assert dear_y == pytest.approx(base_y, abs=0.1) and (abs(dear_x - base_x) < 0.1) == same


def test_all_curves_may_be_none(score_of):
    lost = score_of(curves=np.full((1, 1), math.nan))
    assert "mark-label" not in all_curves([lost], "baseline", against_flops=True)


def test_learning_curves_of_a_task_have_one_axis(score_of):
    """The baseline's curve, behind that of a variant with half as many updates, ends at the same place as alone."""
    long = score_of(steps=(50, 100), curves=np.array([[0.2, 0.6]]))
    short = score_of(variant="short", steps=(25, 50), curves=np.array([[0.2, 0.6]]))
    ends = []
    for variant in (long, short):
        path = re.search(r'<g class="curve baseline"><path d="([^"]*)"', learning_curve(variant, long, (0.0, 1.0), 100))
        ends.append(path[1].split()[-2:])
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("interval", "within", "said"),
    [
        (Interval(0.3, 0.25, 0.35), False, "open: 0.300 [0.250, 0.350], above the threshold of 0.2"),
        (Interval(0.3, 0.15, 0.35), False, "open: 0.300 [0.150, 0.350], around the threshold of 0.2"),
        (Interval(0.1, 0.05, 0.2), False, "open: 0.100 [0.050, 0.200], below the threshold of 0.2"),
        (Interval(0.0, -0.1, 0.1), True, "open: 0.000 [−0.100, 0.100], within the thresholds of ±0.2"),
        (Interval(0.1, -0.1, 0.3), True, "open: 0.100 [−0.100, 0.300], around an end of the thresholds of ±0.2"),
        (Interval(-0.4, -0.5, -0.3), True, "open: −0.400 [−0.500, −0.300], outside of the thresholds of ±0.2"),
    ],
)
def test_a_figure_says_where_the_interval_lies_and_how_it_was_answered(interval, within, said):
    svg = threshold_figure(interval, 0.2, "open", "is it so?", 3, within=within)
    assert f"is it so? {said}" in svg and len(re.findall('<g class="threshold', svg)) == 1 + within


def test_two_thresholds_of_a_difference_that_should_be_small():
    row = Row("is it small?", Interval(0.0, -0.1, 0.1), 0.2, "yes", "", within=True)
    svg = comparisons_figure([row])
    assert len(re.findall('<g class="threshold', svg)) == 2 and "against ±0.2" in svg


def test_a_measure_that_is_not_finite_is_called_so(scatter_of):
    svg = scatter_of([100.0, math.nan])
    assert "name 1 0.500 at not finite" in svg and svg.count("<circle") == 1


def test_a_pair_that_diverged_has_no_shade():
    means = np.array([[0.5, math.nan], [0.7, 0.6]])
    svg = factorial_grid(Factorial(("a", "b"), (("x", "y"), ("p", "q")), means, ()), SHARE)
    assert "x and q not finite; y and p 0.700" in svg and "nan" not in svg
    assert "nan" not in factorial_grid(Factorial(("a", "b"), (("x",), ("p",)), np.array([[math.nan]]), ()), SHARE)
