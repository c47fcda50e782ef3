import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn

from flaxformer_lab.functional.losses import explained_variance
from flaxformer_lab.functional.metrics import (
    AUC,
    NDCG,
    AUCError,
    Average,
    MacroF1,
    PerExample,
    RootMean,
    RSquared,
    additive,
    compute,
    reduce_over,
)

RNG = np.random.default_rng(0)
SCORES = RNG.integers(0, 12, 90).astype(np.float32)  # with ties
LABELS = RNG.integers(0, 2, 90)
WEIGHTS = RNG.uniform(0, 2, 90).astype(np.float32) * (RNG.uniform(size=90) < 0.8)
GROUPS = RNG.integers(0, 7, 90)


def batches(make, *arrays, parts=(0, 10, 55, 90)):
    """The states of some batches of unequal size."""
    return [make(*(array[a:b] for array in arrays)) for a, b in itertools.pairwise(parts)]


def value(states):
    return compute([{"metric": state} for state in states])["metric"]


def test_an_average_is_the_sum_over_the_weight_whatever_the_order():
    states = [Average(np.float32(total), np.float32(1)) for total in (1e8, 1.0, -1e8)]
    assert value(states) == value(states[::-1]) == pytest.approx(1 / 3)


def test_what_each_example_adds_is_the_average_of_that_example():
    """Several tokens an example, and weights; examples without any stay, so that the examples of seeds are the same."""
    outputs, targets = (RNG.normal(size=(90, 3, 2)).astype(np.float32) for _ in range(2))
    weights = np.stack([WEIGHTS, WEIGHTS, 0 * WEIGHTS], axis=1)
    average = lambda batch: explained_variance(*batch)  # noqa: E731
    states = batches(lambda *arrays: PerExample.of(average, arrays), outputs, targets, weights)
    totals, shares = value(states)
    squares = np.mean(np.square(targets), axis=-1)
    errors = np.mean(np.square(outputs - targets), axis=-1)
    np.testing.assert_allclose(totals, ((squares - errors) * weights).sum(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shares, (squares * weights).sum(axis=1), rtol=1e-4)
    whole = average((outputs, targets, weights))
    assert totals.sum() / shares.sum() == pytest.approx(float(whole.total / whole.weight), abs=1e-5)


def test_area_under_the_curve_is_exact_with_ties_and_weights():
    expected = sklearn.roc_auc_score(LABELS, SCORES, sample_weight=WEIGHTS)
    assert value(batches(AUC, SCORES, LABELS, WEIGHTS)) == pytest.approx(expected, rel=1e-12)
    assert value([AUC(SCORES, LABELS, np.ones(90))]) == pytest.approx(sklearn.roc_auc_score(LABELS, SCORES), rel=1e-12)
    assert math.isnan(value([AUC(SCORES, np.ones(90, int), WEIGHTS)]))


@pytest.mark.parametrize("top", [1, 3, 50])
def test_ranking_is_judged_user_by_user_over_all_batches(top):
    relevance = RNG.integers(0, 4, 90).astype(np.float32) * (GROUPS != 3)  # nothing is relevant to user 3
    states = batches(lambda *arrays: NDCG(*arrays, top=top), GROUPS, SCORES, relevance, WEIGHTS)
    expected = []
    for group in set(GROUPS) - {3}:
        of_group = (group == GROUPS) & (WEIGHTS > 0)
        expected.append(sklearn.ndcg_score([relevance[of_group]], [SCORES[of_group]], k=top))
    assert value(states) == pytest.approx(np.mean(expected), rel=1e-6)


def test_macro_f1_is_that_of_all_batches_and_not_a_mean_of_theirs():
    logits, targets = RNG.normal(size=(90, 4)), RNG.integers(0, 3, 90)  # nobody has the last class
    of = jax.jit(MacroF1.of)
    states = batches(of, logits.astype(np.float32), targets, WEIGHTS)
    predicted = logits.argmax(-1)
    labels = sorted(set(predicted[WEIGHTS > 0]) | set(targets[WEIGHTS > 0]))
    options = {"sample_weight": WEIGHTS, "average": "macro", "labels": labels}
    expected = sklearn.f1_score(targets, predicted, **options)
    assert value(states) == pytest.approx(expected, rel=1e-5)
    assert abs(np.mean([value([state]) for state in states]) - expected) > 1e-3


def test_explained_variance_and_root_mean_are_those_of_all_batches():
    targets = RNG.normal(0.3, 1, 90).astype(np.float32)
    outputs = targets + RNG.normal(0, 0.5, 90).astype(np.float32)
    states = batches(jax.jit(RSquared.of), outputs, targets, WEIGHTS)
    expected = sklearn.r2_score(targets, outputs, sample_weight=WEIGHTS)
    assert value(states) == pytest.approx(expected, rel=1e-5)
    assert abs(np.mean([value([state]) for state in states]) - expected) > 1e-3
    squares = np.square(outputs - targets)
    roots = batches(lambda each, weights: RootMean(np.sum(each * weights), np.sum(weights)), squares, WEIGHTS)
    expected = sklearn.root_mean_squared_error(targets, outputs, sample_weight=WEIGHTS)
    assert value(roots) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("error", "expected"), [(0.1, 0.0), (0.0, 1.0)])
def test_where_all_targets_are_equal_nothing_can_be_explained(error, expected):
    """As in scikit-learn; sums in float32 do not make it a huge negative number."""
    targets = np.full(90, 0.7, np.float32)
    arrays = (targets + np.float32(error), targets, np.ones(90, np.float32))
    assert value(batches(jax.jit(RSquared.of), *arrays)) == expected
    halves = np.full(90, 0.5)  # whose mean scikit-learn rounds to themselves
    assert sklearn.r2_score(halves, halves + error) == expected


def test_devices_reduce_sums_by_adding_and_the_others_by_gathering():
    assert jax.local_device_count() > 1
    devices = 2

    def states(scores, labels, weights):
        metrics = {"auc": AUC(scores, labels, weights), "mean": Average(jnp.sum(scores * weights), jnp.sum(weights))}
        return reduce_over(metrics, "devices")

    arrays = [jnp.asarray(array).reshape(devices, -1) for array in (SCORES, LABELS, WEIGHTS)]
    found = jax.tree.map(
        lambda leaf: leaf[1], jax.pmap(states, axis_name="devices", devices=jax.devices()[:2])(*arrays)
    )
    assert compute([found])["auc"] == pytest.approx(sklearn.roc_auc_score(LABELS, SCORES, sample_weight=WEIGHTS))
    assert compute([found])["mean"] == pytest.approx(np.average(SCORES, weights=WEIGHTS), rel=1e-5)
    assert additive(found).keys() == {"mean"}


def test_what_has_no_value_is_nan():
    """No weight, no class, one kind of label, an unknown label, a score that is not a number."""
    scores, odd = SCORES.copy(), np.where(np.arange(90) == 5, -1, LABELS)
    scores[7] = np.nan
    ones = np.ones(90, np.float32)
    nothing = np.zeros(90, np.float32)
    logits, targets = jnp.asarray(RNG.normal(size=(90, 4)), jnp.float32), jnp.arange(90) % 4
    for state in (
        Average(np.float32(0), np.float32(0)),
        RootMean(np.float32(0), np.float32(0)),
        RSquared.of(*map(jnp.asarray, (SCORES, SCORES, nothing))),
        MacroF1.of(logits, targets, jnp.asarray(nothing)),
        MacroF1.of(logits, jnp.where(targets == 2, -1, targets), jnp.asarray(ones)),
        AUC(SCORES, np.zeros(90, int), ones),
        AUC(SCORES, odd, ones),
        AUC(scores, LABELS, ones),
        NDCG(GROUPS, SCORES, LABELS, nothing),
        NDCG(GROUPS, scores, LABELS, ones),
    ):
        assert math.isnan(value([state])), state


def test_what_has_no_weight_does_not_matter():
    scores, weights = SCORES.copy(), WEIGHTS.copy()
    scores[7], weights[7] = np.nan, 0
    expected = sklearn.roc_auc_score(LABELS, SCORES, sample_weight=weights)
    assert value([AUC(scores, np.where(weights == 0, -1, LABELS), weights)]) == pytest.approx(expected, rel=1e-12)
    assert value([NDCG(GROUPS, scores, LABELS, weights)]) == value([NDCG(GROUPS, SCORES, LABELS, weights)])


def test_the_error_of_an_auc_is_that_of_drawing_whole_groups():
    generator = np.random.default_rng(0)
    groups, ones = np.repeat(np.arange(30), 20), np.ones(600)
    labels = (generator.random(600) < 0.3).astype(int)
    scores = labels + np.repeat(generator.normal(size=30), 20) + generator.normal(size=600)  # each group has an offset
    state, values = AUCError(scores, labels, ones, groups, draws=400), []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(groups == group) for group in generator.integers(30, size=30)])
        values.append(sklearn.roc_auc_score(labels[rows], scores[rows]))
    assert state.compute() == pytest.approx(np.std(values), rel=0.15)
    parts = batches(functools.partial(AUCError, draws=400), scores, labels, ones, groups, parts=(0, 250, 600))
    assert value(parts) == state.compute()


def test_the_error_of_an_auc_of_independent_examples_is_the_limit_of_drawing_them():
    ones = np.ones(90)
    alone = AUCError(SCORES, LABELS, ones, np.arange(90)).compute()
    drawn = AUCError(SCORES, LABELS, ones, np.append(np.arange(89), 88), draws=2000).compute()  # but for one pair
    assert alone == pytest.approx(drawn, rel=0.1)
    assert math.isnan(AUCError(SCORES, ones, ones, np.arange(90)).compute())  # one class alone
    single = np.arange(90) == 7  # one positive: where it lies among the negatives is all that varies
    above = (SCORES[7] > SCORES[~single]) + 0.5 * (SCORES[7] == SCORES[~single])
    expected = np.sqrt(np.var(above, ddof=1) / 89)
    assert AUCError(SCORES, single, ones, np.arange(90)).compute() == pytest.approx(expected, rel=1e-6)
