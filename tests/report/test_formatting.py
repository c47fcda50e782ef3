"""Values as text."""

import math
from types import SimpleNamespace

import pytest

from flaxformer_lab.ablation.claim_config import Claim, Comparison, Conclusion, Quantity
from flaxformer_lab.report.claims import Decision, Finding
from flaxformer_lab.report.formatting import (
    format_bound,
    format_count,
    format_interval,
    format_p_value,
    format_reach,
    format_search,
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
    [
        ((8, 2, 4), "4"),
        ((8, 2, 4, 7), "5.5"),
        ((8, None, 4), "2 of 3 seeds"),
        ((None, None), "0 of 2 seeds"),
        (None, ""),
    ],
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


def decision(verdict, conclusion, other=None, not_converged=()):
    finding = Finding(Comparison("first", "does it?", Quantity("near")), None, "open", not_converged=not_converged)
    conclusions = (Conclusion("supported only when", conclusion),)
    return Decision(Claim("X", "It does.", (finding.comparison,), conclusions), verdict, conclusion, (finding,), other)


def test_another_condition_at_equal_flops_is_told():
    condition, other = "supported only when", decision("supported only when", "it rains")
    same, differs = (decision(condition, each, other, ("baseline on near",)) for each in ("it rains", "it snows"))
    assert same.reason == "it rains (not converged: baseline on near)"
    assert format_reach(same)[0] == "Equal FLOPs: the verdict is the same."
    assert format_reach(differs)[0] == "Equal FLOPs: it would be supported only when it rains."
    undecided = decision("supported", "it rains", decision("undecided", "open: does it?"))
    assert format_reach(undecided)[0] == "Equal FLOPs: it would be undecided: does it?."


def test_the_rates_that_were_given_are_those_of_the_cells(score_of):
    scores = [score_of(by_rate={rate: 0.5}) for rate in (0.005, 0.0005, 0.005)]
    grid = SimpleNamespace(config=SimpleNamespace(learning_rates=(0.001, 0.003)))
    assert format_search(SimpleNamespace(grid=grid, scores=scores)) == "learning rate given: 0.0005, 0.005"
