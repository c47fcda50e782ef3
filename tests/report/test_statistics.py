"""Statistics against simulations, textbook loops and other libraries."""

import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.report import statistics
from flaxformer_lab.report.statistics import (
    COVERAGE,
    bootstrap_interval,
    equivalence_p_value,
    holm,
    interquartile_mean,
    paired_p_value,
    probability_of_improvement,
    share_interval,
    standard_error,
    steps_to_threshold,
)

ROOT = Path(__file__).parents[2]
GENERATOR = np.random.default_rng(0)


def test_one_outlier_does_not_make_it_endless():
    values = [1.0, 1.0, 0.999, 1.001, 0.74]
    found, student = bootstrap_interval(values), 2.7765 * stats.sem(values)
    assert found.mean - 2 * student <= found.low < found.high <= found.mean + 2 * student
    inside = bootstrap_interval(values, limits=(0.0, 1.0))
    assert inside.high == 1.0 and inside.low == found.low


def test_an_interval_stays_inside_the_limits_of_the_score():
    values = [0.999, 1.0, 0.98, 0.9, 1.0]
    free, inside = bootstrap_interval(values), bootstrap_interval(values, limits=(0, 1))
    assert free.high > 1 and inside.high == 1.0 and inside.low == free.low
    assert bootstrap_interval([0.0, 0.01, 0.0, 0.1, 0.0], limits=(0, 1)).low == 0
    assert bootstrap_interval(values, limits=(None, 1)).low == free.low


def test_an_interval_is_the_same_each_time_and_moves_with_the_values():
    values = GENERATOR.normal(size=7)
    one = bootstrap_interval(values)
    assert one == bootstrap_interval(list(values)) and one.mean == pytest.approx(values.mean())
    moved = bootstrap_interval(10 + 3 * values)
    assert moved.low == pytest.approx(10 + 3 * one.low) and moved.high == pytest.approx(10 + 3 * one.high)
    assert one != bootstrap_interval(values, seed=1)


def test_a_large_samples_interval_is_that_of_the_normal_law(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 2000)
    values = GENERATOR.normal(size=2000)
    found, error = bootstrap_interval(values), stats.sem(values)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize(
    "values", [[0.5], [0.5, np.nan], [0.5] * 5, [0.1 + 0.2, 0.3, 0.3], [0.0] * 5, [np.inf, 1.0, 2.0, 3.0]]
)
def test_values_that_tell_nothing_of_the_spread(values):
    """Equal differences of two seeds are no proof: neither an interval without width nor p = 0."""
    found = bootstrap_interval(values)
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(paired_p_value(values)) and np.isnan(equivalence_p_value(values, 0.1))


def test_two_and_three_values_have_students_interval():
    for values in ([0.1, 0.3], [0.1, 0.3, 0.35]):
        found, ends = bootstrap_interval(values), stats.t.interval(0.95, len(values) - 1, np.mean(values))
        assert found.low == pytest.approx(np.mean(values) + (ends[0] - np.mean(values)) * stats.sem(values))
        assert found.high == pytest.approx(np.mean(values) + (ends[1] - np.mean(values)) * stats.sem(values))


# ------------------------------------------------------------------------------------------ shared test examples


def shared_test_scores(rng, seeds=5, examples=60, spread=0.02):
    """Right or wrong, [seeds, examples]: examples differ in how hard they are, seeds in how good they are."""
    hard = rng.beta(2.0, 1.0, examples)
    good = rng.normal(0, spread, (seeds, 1))
    return (rng.uniform(size=(seeds, examples)) < np.clip(hard + good, 0, 1)).astype(float)


def test_the_variance_of_both_is_that_of_a_crossed_table():
    """Against the expected mean squares of a two-way table: the interaction is counted twice, never left out."""
    scores = shared_test_scores(np.random.default_rng(0), seeds=8, examples=200)
    error, freedom = standard_error(scores.mean(axis=1), scores.mean(axis=0) - scores.mean())
    by_seed = np.var(scores.mean(axis=1), ddof=1) / 8
    by_example = np.var(scores.mean(axis=0), ddof=1) / 200
    assert error**2 == pytest.approx(by_seed + by_example)
    welch = stats.ttest_ind_from_stats(
        1.0, np.sqrt(8 * by_seed), 8, 0.0, np.sqrt(200 * by_example), 200, equal_var=False
    )
    assert 2 * stats.t.sf(1 / error, freedom) == pytest.approx(welch.pvalue)  # the same law of a sum of variances


def test_a_single_block_of_examples_says_nothing_of_their_spread():
    values = [0.1, 0.2, 0.15, 0.3, 0.25]
    assert bootstrap_interval(values, examples=np.array([0.7])) == bootstrap_interval(values)


def test_examples_that_agree_change_nothing():
    values = GENERATOR.normal(size=6)
    assert standard_error(values, np.zeros(50))[0] == pytest.approx(stats.sem(values))
    assert standard_error(values, np.zeros(50))[1] == pytest.approx(5)
    assert paired_p_value(values, examples=np.zeros(50)) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    harder = GENERATOR.normal(size=50)
    assert paired_p_value(values, examples=harder) > paired_p_value(values)


# ------------------------------------------------------------------------------------------ tests


def test_the_p_value_is_that_of_a_t_test():
    differences = np.array([0.1, 0.3, 0.2, 0.15, 0.4])
    assert paired_p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert paired_p_value(differences, null=0.2) == pytest.approx(stats.ttest_1samp(differences, 0.2).pvalue)


def test_equivalence_is_two_one_sided_tests():
    for values in (np.array([0.01, -0.02, 0.015, 0.0, 0.005]), np.array([0.05, 0.04, 0.06, 0.055, 0.05])):
        upper = stats.ttest_1samp(values, 0.03, alternative="less").pvalue
        lower = stats.ttest_1samp(values, -0.03, alternative="greater").pvalue
        assert equivalence_p_value(values, 0.03) == pytest.approx(max(upper, lower))
        assert equivalence_p_value(-values, 0.03) == pytest.approx(max(upper, lower))


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


@pytest.mark.parametrize(("hits", "number"), [(0, 5), (3, 5), (5, 5), (7, 20)])
def test_a_share_has_the_interval_of_clopper_and_pearson(hits, number):
    found, theirs = share_interval(hits, number), stats.binomtest(hits, number).proportion_ci(method="exact")
    assert (found.mean, found.low, found.high) == pytest.approx((hits / number, theirs.low, theirs.high))


def test_half_a_hit_lies_between_and_no_seed_tells_nothing():
    low, middle, high = (share_interval(hits, 6) for hits in (2, 2.5, 3))
    assert low.low < middle.low < high.low and low.high < middle.high < high.high
    assert np.isnan([share_interval(0, 0).mean, share_interval(0, 0).low]).all()


def test_the_probability_of_improvement_counts_paired_seeds():
    found = probability_of_improvement([0.1, -0.2, 0.0, 0.3, 0.0])
    assert found == share_interval(3, 5) and found.mean == 0.6
    assert probability_of_improvement([0.0, 0.0]).mean == 0.5


def test_the_interquartile_mean_leaves_the_ends_out():
    assert interquartile_mean([100.0, 1, 2, 3, 4, 5, 6, -100]) == pytest.approx(3.5)
    assert interquartile_mean([0.0, 1, 2, 3, 10]) == pytest.approx(2)
    assert interquartile_mean([20.0, 0, 0, 1, 2, 3, 10, 20]) == pytest.approx(4)


def test_steps_to_a_threshold():
    curves = np.array([[0.1, 0.5, 0.95], [0.2, 0.91, 0.89], [0.1, np.nan, 0.3]])
    assert steps_to_threshold((10, 20, 30), curves, 0.9, higher_is_better=True) == [30, 20, None]
    assert steps_to_threshold((10, 20, 30), curves, 0.15, higher_is_better=False) == [10, None, 10]


# ------------------------------------------------------------------------------------------ simulations


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.normal(size=5), 0),
        (lambda rng: np.abs(rng.normal(size=5)), np.sqrt(2 / np.pi)),
        (lambda rng: rng.uniform(-1, 1, 10), 0),
        (lambda rng: rng.laplace(size=5), 0),
        (lambda rng: rng.normal(3, 2, size=10), 3),
    ],
)
def test_the_interval_holds_the_truth_in_95_of_100_cases(monkeypatch, draw, truth):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng, cases = np.random.default_rng(1), 1500
    intervals = [bootstrap_interval(draw(rng), seed=number) for number in range(cases)]
    held = np.mean([each.low <= truth <= each.high for each in intervals])
    assert 0.93 <= held <= 0.97


@pytest.fixture(scope="module")
def simulated():
    """The simulation behind the table in docs/science.md."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return runpy.run_path(str(ROOT / "tools" / "coverage.py"))["coverage"]


@pytest.mark.parametrize("law", COVERAGE)
def test_reports_and_docs_say_what_simulations_give(monkeypatch, simulated, law):
    """Also where an interval holds the truth less often than its name says."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    assert simulated(law, 5, cases=1000) == pytest.approx(COVERAGE[law][5], abs=0.035)
    table = (ROOT / "docs" / "science.md").read_text().partition("<!-- coverage: begin -->")[2]
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {law} |"))
    printed = [float(cell.strip(" *")) for cell in row.strip("|").split("|")[1:]]
    assert list(COVERAGE[law].values()) == pytest.approx(printed, abs=0.0051)
    assert row.count("**") / 2 == sum(not 0.93 <= share <= 0.97 for share in printed)


def test_the_plain_percentile_interval_of_five_values_would_not():
    rng, held = np.random.default_rng(1), 0
    for _ in range(1000):
        values = rng.normal(size=5)
        low, high = np.quantile(rng.choice(values, (500, 5)).mean(axis=1), [0.025, 0.975])
        held += low <= 0 <= high
    assert held < 900


def test_the_interval_is_the_studentised_one_of_scipy():
    """A loop over resamples with SciPy's standard error, where nothing is cut."""
    values = np.random.default_rng(0).gamma(4.0, size=12)
    found, error = bootstrap_interval(values), stats.sem(values)
    rng = np.random.default_rng(5)
    drawn = [rng.choice(values, 12) for _ in range(4000)]
    moved = [(each.mean() - values.mean()) / stats.sem(each) for each in drawn]
    low, high = values.mean() - error * np.quantile(moved, [0.975, 0.025])
    assert found.low == pytest.approx(low, abs=0.06 * error) and found.high == pytest.approx(high, abs=0.1 * error)
    assert values.mean() - found.low < found.high - values.mean()  # longer where the tail is


def test_seeds_and_test_examples_together_hold_the_truth(monkeypatch):
    """The truth is the score on endless examples, which seeds alone cannot know of."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    rng, held, alone, cases, truth = np.random.default_rng(2), 0, 0, 600, 2 / 3
    for case in range(cases):
        scores = shared_test_scores(rng)
        values, examples = scores.mean(axis=1), scores.mean(axis=0) - scores.mean()
        both, seeds = bootstrap_interval(values, examples=examples, seed=case), bootstrap_interval(values, seed=case)
        held += both.low <= truth <= both.high
        alone += seeds.low <= truth <= seeds.high
    assert 0.93 <= held / cases <= 0.99 and alone / cases < 0.85


def test_p_values_of_no_difference_are_even():
    rng = np.random.default_rng(0)
    found = [paired_p_value(rng.normal(size=5)) for _ in range(2000)]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_a_difference_at_the_margin_is_rarely_called_equal():
    rng = np.random.default_rng(0)
    wrong = np.mean([equivalence_p_value(rng.normal(0.5, 0.1, 5), 0.5) < 0.05 for _ in range(2000)])
    assert 0.03 < wrong < 0.07


def test_holm_rarely_finds_what_is_not_there():
    rng, families = np.random.default_rng(0), 2000
    wrong = sum(np.any(holm(rng.uniform(size=10)) < 0.05) for _ in range(families))
    assert wrong / families < 0.06


def test_a_seed_that_diverged_is_neither_better_nor_worse():
    found = probability_of_improvement([0.1, 0.2, np.nan])
    assert np.isnan([found.mean, found.low, found.high]).all()
