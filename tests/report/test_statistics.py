"""Statistics against simulations, textbook loops and other libraries."""

import itertools

import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.report import statistics
from flaxformer_lab.report.statistics import (
    bootstrap_interval,
    holm,
    interquartile_mean,
    paired_p_value,
    probability_of_improvement,
    steps_to_threshold,
)

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.normal(size=5), 0),
        (lambda rng: rng.uniform(-1, 1, 10), 0),
        (lambda rng: rng.laplace(size=5), 0),
        (lambda rng: rng.normal(3, 2, size=10), 3),
    ],
)
def test_the_interval_holds_the_truth_in_95_of_100_cases(monkeypatch, draw, truth):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng, cases = np.random.default_rng(1), 1500
    intervals = [bootstrap_interval(draw(rng), seed=number) for number in range(cases)]
    held = np.mean([each.low <= truth <= each.high for each in intervals])
    assert 0.93 <= held <= 0.97


def test_the_plain_percentile_interval_of_five_values_would_not():
    rng, held = np.random.default_rng(1), 0
    for _ in range(1000):
        values = rng.normal(size=5)
        low, high = np.quantile(rng.choice(values, (500, 5)).mean(axis=1), [0.025, 0.975])
        held += low <= 0 <= high
    assert held < 900


def test_one_outlier_does_not_make_it_endless():
    found = bootstrap_interval([1.0, 1.0, 0.999, 1.001, 0.74])
    assert 0.7 < found.low < found.high < 1.1


def test_an_interval_is_the_same_each_time_and_moves_with_the_values():
    values = GENERATOR.normal(size=7)
    one = bootstrap_interval(values)
    assert one == bootstrap_interval(list(values)) and one.mean == pytest.approx(values.mean())
    moved = bootstrap_interval(10 + 3 * values)
    assert moved.low == pytest.approx(10 + 3 * one.low) and moved.high == pytest.approx(10 + 3 * one.high)
    assert one != bootstrap_interval(values, seed=1)


def test_a_large_samples_interval_is_that_of_the_normal_law():
    values = GENERATOR.normal(size=2000)
    found, error = bootstrap_interval(values[:2000]), stats.sem(values)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize(("values", "low"), [([0.5], np.nan), ([0.5, np.nan], np.nan), ([0.5] * 5, 0.5)])
def test_values_that_tell_nothing_of_the_spread(values, low):
    found = bootstrap_interval(values)
    np.testing.assert_equal((found.low, found.high), (low, low))


def test_the_p_value_is_that_of_a_t_test_by_hand():
    differences = np.array([0.1, 0.3, 0.2, 0.15, 0.4])
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(5))
    assert paired_p_value(differences) == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert paired_p_value([0.0] * 5) == 1 and paired_p_value([0.1] * 5) == 0
    assert np.isnan(paired_p_value([0.1])) and np.isnan(paired_p_value([0.1, np.nan]))


def test_p_values_of_no_difference_are_even():
    rng = np.random.default_rng(0)
    found = [paired_p_value(rng.normal(size=5)) for _ in range(2000)]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def holm_by_closure(p_values):
    """A hypothesis falls when every set that holds it falls by Bonferroni's rule: the adjusted p is the largest one."""
    number = len(p_values)
    sets = [each for size in range(1, number + 1) for each in itertools.combinations(range(number), size)]
    return [
        min(max(len(each) * min(p_values[j] for j in each) for each in sets if i in each), 1.0) for i in range(number)
    ]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_holms_correction_is_the_closure_of_bonferronis(number):
    for _ in range(20):
        p_values = GENERATOR.uniform(0, 0.3, number)
        np.testing.assert_allclose(holm(p_values), holm_by_closure(p_values))


def test_what_has_no_p_value_does_not_count():
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert holm([]).shape == (0,)


def test_holm_rarely_finds_what_is_not_there():
    rng, families = np.random.default_rng(0), 2000
    wrong = sum(np.any(holm(rng.uniform(size=10)) < 0.05) for _ in range(families))
    assert wrong / families < 0.06


def test_the_probability_of_improvement_counts_pairs():
    ours, theirs = GENERATOR.integers(0, 5, 6).astype(float), GENERATOR.integers(0, 5, 4).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in ours for b in theirs]
    assert probability_of_improvement(ours, theirs) == pytest.approx(np.mean(pairs))
    assert probability_of_improvement([1, 1], [1, 1]) == 0.5
    assert np.isnan(probability_of_improvement([], [1.0]))


def test_the_interquartile_mean_leaves_the_ends_out():
    assert interquartile_mean([100.0, 1, 2, 3, 4, 5, 6, -100]) == pytest.approx(3.5)
    assert interquartile_mean([0.0, 1, 2, 3, 10]) == pytest.approx(2)


def test_steps_to_a_threshold():
    curves = np.array([[0.1, 0.5, 0.95], [0.2, 0.91, 0.89], [0.1, np.nan, 0.3]])
    assert steps_to_threshold((10, 20, 30), curves, 0.9, higher_is_better=True) == [30, 20, None]
    assert steps_to_threshold((10, 20, 30), curves, 0.15, higher_is_better=False) == [10, None, 10]
