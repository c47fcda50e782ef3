"""Scores and differences from made-up results, against figures by hand."""

import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.ablation.grid import BASELINE
from flaxformer_lab.ablation.rates import progress
from flaxformer_lab.report.formatting import (
    format_bound,
    format_clarity,
    format_improvement,
    format_interval,
    format_share,
)
from flaxformer_lab.report.statistics import bootstrap_interval, share_interval
from flaxformer_lab.report.summary import at_equal_flops, difference_of_examples, intervals_beside, summarise
from flaxformer_lab.tasks import PrimaryMetric

RATES, SEEDS = (0.01, 0.03), (0, 1, 2)


@pytest.fixture
def summary(grid, store, result):
    """The function that summarises what it is given: {(task, variant): scores by learning rate and seed}."""

    def make(scores, changes=None, bound=None, validation=None):
        made = grid({"seeds": SEEDS, "learning_rates": RATES, **(changes or {})})
        store.claim(made)
        for (task, variant), values in scores.items():
            cell = made.cell(task, variant)
            on_validation = None if validation is None else np.ravel(validation[task, variant])
            store.finish(cell, result(cell, np.ravel(values), bound=bound, validation=on_validation))
        return summarise(made, store)

    return make


def test_the_rate_is_chosen_on_validation_and_the_score_is_that_of_test(summary):
    """Where the two splits disagree: on test the other rate would be the better one."""
    test, validation = [[0.7, 0.8, 0.9], [0.5, 0.6, 0.1]], [[0.1, 0.2, 0.3], [0.4, 0.3, 0.2]]
    found = summary({("near", BASELINE): test}, validation={("near", BASELINE): validation}).score("near", BASELINE)
    assert found.learning_rate == 0.03 and found.metric.name == "r2"
    np.testing.assert_array_equal(found.values, [0.5, 0.6, 0.1])
    assert found.interval.mean == pytest.approx(0.4) and found.seeds == SEEDS
    assert found.curves.tolist() == [[0, 0.4], [0, 0.3], [0, 0.2]] and found.steps == (2, 4)


def test_a_score_is_that_of_the_whole_search(grid, store, result):
    """Of the cell and its extension together; what waits or failed is told."""
    made = grid({"seeds": SEEDS, "learning_rates": RATES, "max_extensions": 1})
    store.claim(made)
    cell = made.cell("near", BASELINE)
    store.finish(cell, result(cell, np.repeat((0.1, 0.2), 3)))
    half = summarise(made, store)
    assert half.score("near", BASELINE).rate_edge == "highest" and cell in half.missing and not half.finished
    more = progress(cell, store, made.config)[1]
    store.finish(more, result(more, np.repeat((0.4, 0.3), 3)))
    whole = summarise(made, store)
    found = whole.score("near", BASELINE)
    assert (found.learning_rate, found.rate_edge, found.seconds) == (0.09, None, 2.0) and cell not in whole.missing
    assert whole.finished == (found,)
    expected = {
        rate: score - 1 / 16 for rate, score in zip((0.01, 0.03, 0.09, 0.27), (0.1, 0.2, 0.4, 0.3), strict=True)
    }
    assert found.by_rate == pytest.approx(expected)
    np.testing.assert_array_equal(found.values, [0.4] * 3)


def test_each_variant_has_its_own_learning_rate_and_seeds_are_paired(summary):
    ours, theirs = np.array([0.5, 0.6, 0.7]), np.array([0.4, 0.55, 0.5])
    found = summary(
        {("near", BASELINE): [theirs, theirs - 0.3], ("near", "ffn_off"): [ours - 0.3, ours]},
    )
    difference = found.difference("near", "ffn_off")
    np.testing.assert_allclose(difference.values, ours - theirs)
    assert difference.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert difference.corrected_p == difference.p_value  # the only one that is finished
    assert difference.probability_of_improvement == share_interval(3, 3)
    assert found.difference("near", BASELINE) is None and found.difference("far", "ffn_off") is None


def test_p_values_are_corrected_for_the_variants_of_a_task(summary):
    base = np.array([0.1, 0.2, 0.3])
    found = summary(
        {
            ("near", BASELINE): [base, base - 1],
            ("near", "ffn_off"): [base + np.array([0.1, 0.12, 0.11]), base - 1],
            ("near", "one head"): [base + np.array([0.1, 0.2, -0.1]), base - 1],
            ("far", BASELINE): [base, base - 1],
        }
    )
    first, second = found.difference("near", "ffn_off"), found.difference("near", "one head")
    assert first.corrected_p == pytest.approx(2 * first.p_value)
    assert second.corrected_p == pytest.approx(max(second.p_value, first.corrected_p))


def test_a_metric_of_which_less_is_better(summary, judged_by):
    judged_by(PrimaryMetric("mse", "MSE", higher_is_better=False, limits=(0.0, None)))
    found = summary(
        {
            ("near", BASELINE): [[2.0, 2.0, 2.0], [1.0, 1.1, 1.2]],
            ("near", "ffn_off"): [[3.0, 3.0, 3.0], [0.5, 0.6, 0.8]],
        },
        bound={"metric": "mse", "value": 1.2, "reason": "a theorem", "assumes": ""},
    )
    base, other = found.score("near", BASELINE), found.score("near", "ffn_off")
    assert base.learning_rate == other.learning_rate == 0.03
    np.testing.assert_allclose(found.difference("near", "ffn_off").values, [0.5, 0.5, 0.4])
    assert found.difference("near", "ffn_off").probability_of_improvement.mean == 1
    assert base.bound_held and not other.bound_held


@pytest.mark.parametrize(
    ("scores", "held"), [([0.2, 0.21, 0.22], True), ([0.26, 0.27, 0.28], True), ([0.5, 0.52, 0.51], False)]
)
def test_a_bound_holds_unless_the_scores_are_clearly_above_it(summary, scores, held):
    bound = {"metric": "r2", "value": 0.25, "reason": "a theorem", "assumes": ""}
    found = summary({("near", BASELINE): [scores, scores]}, bound=bound).score("near", BASELINE)
    assert found.bound_held is held


@pytest.mark.parametrize("value", [1.0, 0.98])
def test_a_bound_that_no_score_can_break_is_not_counted(summary, value):
    bound = {"metric": "r2", "value": value, "reason": "a theorem", "assumes": ""}
    found = summary({("near", BASELINE): np.full((2, 3), 0.5)}, bound=bound).score("near", BASELINE)
    assert found.bound_held is None and format_bound(found) == ""


def test_no_bound_is_neither_held_nor_broken(summary):
    assert summary({("near", BASELINE): np.full((2, 3), 0.5)}).score("near", BASELINE).bound_held is None


def test_steps_to_the_tasks_threshold(summary):
    tasks = {"near": {"recipe": "delay.py", "threshold": 0.55}}
    scores, validation = [[0.5, 0.5, 0.5], [0, 0, 0]], [[0.5, 0.6, 0.7], [0, 0, 0]]
    made = summary({("near", BASELINE): scores}, {"tasks": tasks}, validation={("near", BASELINE): validation})
    assert made.score("near", BASELINE).reached == (None, 4, 4)


def test_a_learning_rate_that_diverged_is_not_chosen(summary):
    found = summary({("near", BASELINE): [[0.1, 0.1, 0.1], [0.9, np.nan, 0.9]]}).score("near", BASELINE)
    assert found.learning_rate == 0.01


def test_half_way_what_is_missing_and_what_failed_are_named(grid, store, result):
    made = grid()
    store.claim(made)
    assert len(summarise(made, store).missing) == 6
    done, failed = made.cells[1], made.cells[2]
    store.finish(done, result(done))
    store.fail(failed, "ValueError: no", "")
    found = summarise(made, store)
    assert [score.variant for score in found.scores] == [done.variant] and not found.differences
    assert found.failures == ((failed, "ValueError: no"),) and len(found.missing) == 4


FIVE = {"seeds": (0, 1, 2, 3, 4), "learning_rates": (0.01,)}
NOISE = np.array([0.01, -0.02, 0.015, 0.0, -0.005])


def test_failures_are_a_share_beside_the_mean_of_the_rest(summary):
    tasks = {"near": {"recipe": "delay.py", "threshold": 0.9}}
    scores = [0.95, 0.97, 0.2, 0.96, 0.94]
    found = summary({("near", BASELINE): scores}, {**FIVE, "tasks": tasks}).score("near", BASELINE)
    assert found.succeeded.tolist() == [True, True, False, True, True] and found.share == share_interval(4, 5)
    assert found.of_successes == bootstrap_interval([0.95, 0.97, 0.96, 0.94], limits=(None, 1.0))
    assert found.interval.mean == pytest.approx(0.804)
    assert format_share(found) == "4 of 5 [0.28, 0.99], mean " + format_interval(found.of_successes)


def test_failures_where_less_is_better_and_where_a_run_is_not_finite(summary, judged_by):
    judged_by(PrimaryMetric("mse", "MSE", higher_is_better=False, limits=(0.0, None)))
    tasks = {
        "near": {"recipe": "delay.py", "threshold": 0.5},
        "far": {"recipe": "delay.py", "overrides": {"task": {"tokens": 6}}},
    }
    scores = {("near", BASELINE): [0.4, 0.6, 0.5, 0.1, 0.9], ("far", BASELINE): [0.4, 0.6, np.nan, 0.1, 0.9]}
    found = summary(scores, {**FIVE, "tasks": tasks})
    assert found.score("near", BASELINE).succeeded.tolist() == [True, False, True, True, False]
    assert found.score("far", BASELINE).share.mean == 0.8
    assert found.score("far", BASELINE).of_successes.mean == pytest.approx(0.5)


def test_scores_stay_inside_the_limits_and_differences_inside_theirs(summary, judged_by):
    judged_by(PrimaryMetric("auc", "AUC", higher_is_better=True, limits=(0.0, 1.0)))
    high, low = np.array([1.0, 1.0, 0.99, 0.9, 1.0]), np.array([0.0, 0.01, 0.0, 0.1, 0.0])
    found = summary({("near", BASELINE): low, ("near", "ffn_off"): high}, FIVE)
    assert found.score("near", "ffn_off").interval.high == 1.0 and found.score("near", BASELINE).interval.low == 0.0
    assert found.difference("near", "ffn_off").interval.high == 1.0
    assert bootstrap_interval(high - low).high > 1.0


def test_a_variant_that_changes_nothing_is_in_no_family(summary):
    """As one head or four, where a single token leaves nothing to attend to."""
    base = 0.5 + NOISE
    other = base + 0.05 + 0.3 * NOISE[::-1]
    found = summary({("near", BASELINE): base, ("near", "ffn_off"): other, ("near", "one head"): base}, FIVE)
    same, different = found.difference("near", "one head"), found.difference("near", "ffn_off")
    assert same.is_same and np.isnan(same.p_value) and format_clarity(same) == "the same function"
    assert not different.is_same and different.corrected_p == different.p_value == stats.ttest_rel(other, base).pvalue
    assert format_improvement(same) == ""


@pytest.mark.parametrize("change", ["test", "validation", "parameters"])
def test_what_differs_anywhere_is_not_the_same(grid, store, result, change):
    made = grid(FIVE)
    store.claim(made)
    for variant in (BASELINE, "one head"):
        cell = made.cell("near", variant)
        other = result(cell, 0.5 + NOISE)
        if variant != BASELINE:
            if change == "parameters":
                other["parameters"] += 1
            elif change == "test":
                other["replicas"][2]["test"]["r2"] += 0.001
            else:
                other["replicas"][2]["validation"]["r2"][0] += 0.001
        store.finish(cell, other)
    assert not summarise(made, store).difference("near", "one head").is_same


def test_equal_is_said_only_after_a_test(summary):
    base = 0.5 + NOISE
    close, unclear, less = base + 0.1 * NOISE[::-1], base + 4 * NOISE[::-1], base - 0.1 + 0.1 * NOISE[::-1]
    found = summary(
        {("near", BASELINE): base, ("near", "ffn_off"): close, ("near", "one head"): unclear},
        FIVE,
    )
    equal, unknown = found.difference("near", "ffn_off"), found.difference("near", "one head")
    alone = max(stats.ttest_1samp(close - base, edge).pvalue / 2 for edge in (-0.02, 0.02))
    assert equal.margin == 0.02 and equal.equivalence_p == pytest.approx(2 * alone) and equal.is_equivalent
    assert format_clarity(equal) == "within ±0.02" and format_clarity(unknown) == "open"
    assert equal.direction == unknown.direction == "level" and not unknown.is_equivalent
    worse = summary({("near", BASELINE): base, ("near", "ffn_off"): less}, FIVE).difference("near", "ffn_off")
    assert (worse.direction, format_clarity(worse)) == ("worse", "worse")


def test_with_few_seeds_nothing_is_clear(summary):
    base = 0.5 + NOISE[:4]
    found = summary(
        {
            ("near", BASELINE): base,
            ("near", "ffn_off"): base - 0.3 + 0.1 * NOISE[1:],
            ("near", "one head"): base + 1e-3 * NOISE[1:],
        },
        {"seeds": (0, 1, 2, 3), "learning_rates": (0.01,)},
    )
    difference = found.difference("near", "ffn_off")
    assert difference.corrected_p < 0.05 and difference.direction == "level"
    equal = found.difference("near", "one head")
    assert equal.equivalence_p < 0.05 and not equal.is_equivalent


def test_shared_test_examples_widen_intervals(grid, store, result, judged_by):
    """Five seeds on the same four examples: against the variances of seeds and of examples, by hand."""
    judged_by(PrimaryMetric("auc", "AUC", higher_is_better=True, limits=(0.0, 1.0)))
    made = grid(FIVE)
    store.claim(made)
    sums = {BASELINE: [5, 5, 3, 0], "ffn_off": [4, 1, 3, 0]}
    for variant, values in ((BASELINE, 0.65 + NOISE), ("ffn_off", 0.4 + NOISE[::-1])):
        cell = made.cell("near", variant)
        examples = {"learning_rate": 0.01, "totals": sums[variant], "weights": [5, 5, 5, 5]}
        store.finish(cell, result(cell, values) | {"test_examples": [examples]})
    found = summarise(made, store)
    base, difference = found.score("near", BASELINE), found.difference("near", "ffn_off")
    np.testing.assert_allclose(base.examples, np.array([1, 1, 0.6, 0]) - 0.65)
    assert base.interval.low < bootstrap_interval(0.65 + NOISE).low - 0.1
    d, moved = -0.25 + NOISE[::-1] - NOISE, np.array([-0.2, -0.8, 0.0, 0.0]) + 0.25
    parts = np.var(d, ddof=1) / 5, np.var(moved, ddof=1) / 4
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 3)
    assert difference.p_value == pytest.approx(2 * stats.t.sf(0.25 / np.sqrt(sum(parts)), freedom))
    assert difference.p_value > 0.1 > stats.ttest_1samp(d, 0).pvalue


def test_a_metric_beside_the_primary_one_has_the_error_of_its_own_examples(grid, store, result, judged_by):
    judged_by(PrimaryMetric("mse", "MSE", higher_is_better=False, limits=(0.0, None), beside=("mae",)))
    made = grid(FIVE)
    store.claim(made)
    cell, values = made.cell("near", BASELINE), 0.65 + NOISE
    found = result(cell, values)
    for each, value in zip(found["replicas"], values, strict=True):
        each["measures"] = {"mae": value}
    shared = {"learning_rate": 0.01, "weights": [5, 5, 5, 5]}
    of_each = [shared | {"totals": [3, 3, 3, 4]}, shared | {"metric": "mae", "totals": [5, 5, 3, 0]}]
    store.finish(cell, found | {"test_examples": of_each})
    score = summarise(made, store).score("near", BASELINE)
    np.testing.assert_allclose(score.beside_examples["mae"], np.array([1, 1, 0.6, 0]) - 0.65)
    np.testing.assert_allclose(score.examples, np.array([0.6, 0.6, 0.6, 0.8]) - 0.65)
    (interval,) = intervals_beside(score)
    assert interval.low < score.interval.low < values.mean() - 0.01


def test_two_test_sets_have_the_error_of_both():
    ours, theirs = np.array([-1.0, 0.0, 1.0]), np.array([2.0, -2.0, 1.0, -1.0, 0.0])
    error = lambda examples: np.var(examples) / len(examples)  # noqa: E731
    assert error(difference_of_examples(ours, theirs)) == pytest.approx(error(ours) + error(theirs))
    np.testing.assert_array_equal(difference_of_examples(ours, -ours), 2 * ours)  # one set: paired
    assert difference_of_examples(ours, None) is None


def test_examples_of_another_rate_are_not_used(grid, store, result):
    made = grid({**FIVE, "learning_rates": (0.01, 0.03)})
    store.claim(made)
    cell = made.cell("near", BASELINE)
    examples = {"learning_rate": 0.01, "totals": [1, 2], "weights": [5, 5]}
    store.finish(cell, result(cell, [0.1] * 5 + [0.5, 0.6, 0.5, 0.6, 0.5]) | {"test_examples": [examples]})
    assert summarise(made, store).score("near", BASELINE).examples is None


def test_equal_flops_are_those_of_the_cheaper_one(grid, store, result):
    """An update of 4 examples takes 12 forward passes. ffn_off ends at 4 updates of 300 FLOPs: baseline's 3 of 400."""
    made = grid({"seeds": SEEDS, "learning_rates": (0.01,)})
    store.claim(made)
    for variant, flops, curve in ((BASELINE, 400, [0.2, 0.8]), ("ffn_off", 300, [0.1, 0.9]), ("one head", 100, [0, 1])):
        cell = made.cell("near", variant)
        found = result(cell, 0.123) | {"forward_flops": flops}
        for each in found["replicas"]:
            each["validation"]["r2"] = [value + each["seed"] for value in curve]
        store.finish(cell, found)
    summary = summarise(made, store)
    base, off = (summary.score("near", variant) for variant in (BASELINE, "ffn_off"))
    assert base.training_flops.tolist() == [12 * 400 * 2, 12 * 400 * 4]
    np.testing.assert_allclose(base.at_flops(12 * 300 * 4), [0.5, 1.5, 2.5])
    np.testing.assert_allclose(off.at_flops(12 * 300 * 4), [0.9, 1.9, 2.9])
    assert summary.difference("near", "ffn_off").at_equal_flops.mean == pytest.approx(0.4)
    # One head ends before the baseline was evaluated.
    assert base.at_flops(12 * 100 * 4) is None and summary.difference("near", "one head").at_equal_flops is None


def test_at_equal_flops_a_success_is_one_of_that_time(score_of):
    curves = np.array([[0.2, 0.8], [0.4, 0.9]])
    known = {"curves": curves, "steps": (1, 2), "values": np.array([0.9, 0.9]), "succeeded": np.ones(2, bool)}
    long, short = score_of(**known, forward_flops=2), score_of(**known, forward_flops=1)
    half, whole = at_equal_flops([long, short], 0.5)
    assert half.values.tolist() == [0.2, 0.4] and half.succeeded.tolist() == [False, False]
    assert whole.values.tolist() == [0.8, 0.9] and whole.succeeded.tolist() == [True, True]
