"""Values as text."""

import math

import pytest

from flaxformer_lab.report.formatting import (
    format_bound,
    format_count,
    format_interval,
    format_p_value,
    format_span,
    format_steps_to_threshold,
    with_minus_signs,
)
from flaxformer_lab.report.statistics import Interval
from flaxformer_lab.tasks import PrimaryMetric


@pytest.mark.parametrize(
    ("interval", "signed", "said"),
    [
        (Interval(0.5, 0.4, 0.6), False, "0.500 [0.400, 0.600]"),
        (Interval(0.5, -0.4, 0.6), True, "+0.500 [-0.400, +0.600]"),
        (Interval(-0.5, math.nan, math.nan), True, "-0.500"),
        (Interval(-0.0001, -0.1, -0.0004), False, "0.000 [-0.100, 0.000]"),
        (Interval(math.nan, math.nan, math.nan), False, "not finite"),
    ],
)
def test_an_interval_in_words(interval, signed, said):
    assert format_interval(interval, signed=signed) == said


@pytest.mark.parametrize(
    ("reached", "said"),
    [((8, 2, 4), "4"), ((8, None, 4), "2 of 3 seeds"), ((None, None), "0 of 2 seeds"), (None, "")],
)
def test_the_steps_to_a_threshold_in_words(score_of, reached, said):
    assert format_steps_to_threshold(score_of(reached=reached)) == said


@pytest.mark.parametrize(("p", "said"), [(0.0, "<0.001"), (0.0009, "<0.001"), (0.0123, "0.012"), (math.nan, "")])
def test_a_p_value_in_words(p, said):
    assert format_p_value(p) == said


def test_the_digits_are_the_metrics(score_of):
    assert format_interval(Interval(0.12345, 0.1, 0.2), 4) == "0.1235 [0.1000, 0.2000]"
    metric = PrimaryMetric("mse", "MSE", higher_is_better=False, digits=1)
    score = score_of(bound={"metric": "mse", "value": 0.25}, interval=Interval(0.3, 0.26, 0.34), metric=metric)
    assert format_bound(score) == "≥ 0.2 held"


def test_numbers_are_well_set():
    assert with_minus_signs("multi-head top-8 -0.5 [-1, +2] 1e-05") == "multi-head top-8 −0.5 [−1, +2] 1e-05"
    assert format_count(1, "seed") == "1 seed" and format_count(2, "seed") == "2 seeds"


@pytest.mark.parametrize(
    ("span", "said"),
    [
        ((-math.inf, 0.97129), "up to 0.971"),
        ((0.00078979, math.inf), "from 0.00079"),
        ((-0.69712, -0.1), "from -0.697 to -0.1"),
        ((0.0, math.inf), "from 0"),
        ((-math.inf, math.inf), "any"),
    ],
)
def test_thresholds_in_words_are_rounded_inwards(span, said):
    assert format_span(span) == said
