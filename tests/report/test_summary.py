"""Scores and differences from made-up results, against figures by hand."""

import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.ablation.grid import BASELINE
from flaxformer_lab.ablation.rates import progress
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.tasks import PrimaryMetric

RATES, SEEDS = (0.01, 0.03), (0, 1, 2)


@pytest.fixture
def summary(grid, store, result):
    """The function that summarises what it is given: {(task, variant): scores by learning rate and seed}."""

    def make(scores, changes=None, bound=None):
        made = grid({"seeds": SEEDS, "learning_rates": RATES, **(changes or {})})
        store.claim(made)
        for (task, variant), values in scores.items():
            cell = made.cell(task, variant)
            store.finish(cell, result(cell, np.ravel(values), bound=bound))
        return summarise(made, store)

    return make


def test_the_learning_rate_with_the_best_validation_is_shown(summary):
    found = summary({("near", BASELINE): [[0.1, 0.2, 0.3], [0.5, 0.6, 0.1]]}).score("near", BASELINE)
    assert found.learning_rate == 0.03 and found.metric.name == "r2"
    np.testing.assert_array_equal(found.values, [0.5, 0.6, 0.1])
    assert found.interval.mean == pytest.approx(0.4) and found.seeds == SEEDS
    assert found.curves.tolist() == [[0, 0.5], [0, 0.6], [0, 0.1]] and found.steps == (2, 4)


def test_a_score_is_that_of_the_whole_search(grid, store, result):
    """Of the cell and its extension together; what waits or failed is told."""
    made = grid({"seeds": SEEDS, "learning_rates": RATES, "max_extensions": 1})
    store.claim(made)
    cell = made.cell("near", BASELINE)
    store.finish(cell, result(cell, np.repeat((0.1, 0.2), 3)))
    half = summarise(made, store)
    assert half.score("near", BASELINE).rate_edge == "highest" and cell in half.missing
    more = progress(cell, store, made.config)[1]
    store.finish(more, result(more, np.repeat((0.4, 0.3), 3)))
    whole = summarise(made, store)
    found = whole.score("near", BASELINE)
    assert (found.learning_rate, found.rate_edge, found.seconds) == (0.09, None, 2.0) and cell not in whole.missing
    assert found.by_rate == pytest.approx({0.01: 0.1, 0.03: 0.2, 0.09: 0.4, 0.27: 0.3})
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
    pairs = np.sign(ours[:, None] - theirs[None]) / 2 + 0.5
    assert difference.probability_of_improvement == pytest.approx(pairs.mean())
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
    assert found.difference("near", "ffn_off").probability_of_improvement == 1
    assert base.bound_held and not other.bound_held


@pytest.mark.parametrize(
    ("scores", "held"), [([0.2, 0.21, 0.22], True), ([0.26, 0.27, 0.28], True), ([0.5, 0.52, 0.51], False)]
)
def test_a_bound_holds_unless_the_scores_are_clearly_above_it(summary, scores, held):
    bound = {"metric": "r2", "value": 0.25, "reason": "a theorem", "assumes": ""}
    found = summary({("near", BASELINE): [scores, scores]}, bound=bound).score("near", BASELINE)
    assert found.bound_held is held


def test_no_bound_is_neither_held_nor_broken(summary):
    assert summary({("near", BASELINE): np.full((2, 3), 0.5)}).score("near", BASELINE).bound_held is None


def test_steps_to_the_tasks_threshold(summary):
    tasks = {"near": {"recipe": "delay.py", "threshold": 0.55}}
    found = summary({("near", BASELINE): [[0.5, 0.6, 0.7], [0, 0, 0]]}, {"tasks": tasks}).score("near", BASELINE)
    assert found.reached == (None, 4, 4)


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
