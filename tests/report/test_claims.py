"""Verdicts from made-up results."""

import dataclasses
import functools
import itertools
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.ablation.claim_config import Claim, Comparison, Conclusion, Quantity
from flaxformer_lab.ablation.grid import BASELINE, make_grid, parse_ablation
from flaxformer_lab.ablation.learned.config import is_learned
from flaxformer_lab.command_line import read_recipe
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.report.claims import conclusion_of, decide, decide_all, first_that_applies, values_of
from flaxformer_lab.report.debate import Row
from flaxformer_lab.report.formatting import format_errors, format_errors_of_scores, format_updates
from flaxformer_lab.report.learned import CONCLUSIONS as OF_PRETRAINED
from flaxformer_lab.report.learned import Findings, Judged, concluded, cut_rows
from flaxformer_lab.report.statistics import Interval, bootstrap_interval
from flaxformer_lab.report.summary import Summary, measure_limits, score_of, summarise
from flaxformer_lab.report.write import as_markdown
from flaxformer_lab.tasks import PrimaryMetric

COMPARISON = Comparison("first", "does it?", Quantity("near"), Quantity("near", "ffn_off"), 0.2)
CONCLUSIONS = (Conclusion("supported", "it does", {"first": "yes"}), Conclusion("refuted", "it does not"))
FAR = {"task": {"tokens": 6}}
SPREAD = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
CLAIM = Claim("X", "It does.", (COMPARISON,), CONCLUSIONS)


@pytest.fixture
def decided(grid, store, result):
    """The function that decides a claim from scores of the baseline and of ffn_off on one task."""

    def decision(ours, theirs, claim=CLAIM, measures=None, seeds=5, threshold=None):
        tasks = {
            "near": {"recipe": "delay.py", "threshold": threshold},
            "far": {"recipe": "delay.py", "overrides": FAR},
        }
        made = grid({"seeds": tuple(range(seeds)), "learning_rates": (0.01,), "tasks": tasks})
        store.claim(made)
        for variant, scores in ((BASELINE, ours), ("ffn_off", theirs)):
            if scores is not None:
                cell = made.cell("near", variant)
                made_up = result(cell, scores, measures if isinstance(measures, dict) else None)
                if isinstance(measures, list):
                    made_up["replicas"] = [
                        each | {"measures": own} for each, own in zip(made_up["replicas"], measures, strict=True)
                    ]
                store.finish(cell, made_up)
        return decide((claim,), summarise(made, store))[0]

    return decision


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (0.9 + SPREAD, 0.5, "supported"),
        (0.6 + SPREAD, 0.5, "refuted"),
        (0.5 + SPREAD, 0.9, "refuted"),
        (0.9, 0.5, "undecided"),  # all seeds alike: nothing is known of their spread
        (0.5, 0.5, "undecided"),
        (0.7 + SPREAD, 0.5, "undecided"),  # the threshold lies inside the interval
        (0.9 + 5 * SPREAD, 0.5, "supported"),
        (0.9 + 30 * SPREAD, 0.5, "undecided"),  # too much noise to tell
        (0.9 + 30 * SPREAD, 0.5 + 29 * SPREAD, "supported"),  # but the same noise for both: seeds are paired
        (0.9, None, "undecided"),
        (None, None, "undecided"),
        (np.full(5, np.nan), 0.5, "undecided"),
    ],
)
def test_an_interval_on_one_side_of_the_threshold_decides(decided, ours, theirs, verdict):
    decision = decided(ours, theirs)
    assert decision.verdict == verdict
    if verdict == "undecided":
        assert "does it?" in decision.reason
        assert ("not measured here" in decision.reason) == (theirs is None)
    else:
        assert decision.reason == ("it does" if verdict == "supported" else "it does not")


def searched(grid, store, result, scores, curve=None):
    """The decision where the baseline has these scores by learning rate, and ffn_off 0.1."""
    made = grid({"seeds": (0, 1, 2, 3, 4), "learning_rates": (0.01, 0.03, 0.1)})
    store.claim(made)
    for variant, by_rate in ((BASELINE, scores), ("ffn_off", (0.1, 0.1, 0.1))):
        cell = made.cell("near", variant)
        noise = SPREAD if variant == BASELINE else -SPREAD[[1, 0, 2, 4, 3]]
        found = result(cell, np.repeat(by_rate, 5) + np.tile(noise, 3))
        if curve:
            found["steps"] = list(range(1, len(curve) + 1))
            for each in found["replicas"]:
                last = each["validation"]["r2"][-1]
                each["validation"] = {name: [last * share for share in curve] for name in each["validation"]}
        store.finish(cell, found)
    return decide((CLAIM,), summarise(made, store))[0]


def test_nothing_rests_on_a_rate_at_the_edge_of_those_tried(grid, store, result):
    assert searched(grid, store, result, (0.5, 0.9, 0.7)).verdict == "supported"
    at_edge = searched(grid, store, result, (0.5, 0.7, 0.9))
    assert at_edge.verdict == "undecided" and at_edge.findings[0].answer == "open"
    assert "at an edge of those tried: baseline on near)" in at_edge.reason
    assert at_edge.findings[0].interval.mean == pytest.approx(0.8)


def test_a_verdict_names_what_was_still_improving(grid, store, result):
    assert searched(grid, store, result, (0.5, 0.9, 0.7), curve=(0.9, 1.0, 1.0, 1.0)).reason == "it does"
    going_on = searched(grid, store, result, (0.5, 0.9, 0.7), curve=(0.6, 0.7, 0.8, 1.0))
    assert (going_on.verdict, going_on.reason) == (
        "supported",
        "it does (not converged: baseline on near, ffn_off on near)",
    )


def test_the_finding_is_the_paired_difference(decided):
    (finding,) = decided(0.9 + SPREAD, 0.5).findings
    assert finding.interval.mean == pytest.approx(0.4) and finding.answer == "yes"
    assert finding.interval.low < 0.4 < finding.interval.high < 0.45


def test_a_measure_can_decide(decided):
    energy = Comparison("first", "does energy cross?", Quantity("near", BASELINE, "cross_feature_energy"), None, 0.1)
    claim = dataclasses.replace(CLAIM, comparisons=(energy,))
    varied = [{"cross_feature_energy": value} for value in 0.3 + SPREAD]
    assert decided(0.9, None, claim, varied).verdict == "supported"
    none = {"cross_feature_energy": 0.0, "cross_token_energy": 0.0}
    assert decided(0.9, None, claim, none).verdict == "refuted"
    assert decided(0.9, None, claim, {"cross_feature_energy": 0.05}).verdict == "undecided"  # the same in each seed


@pytest.mark.parametrize(("measure", "ends"), [("cross_feature_energy", True), ("token_equivariance_error", False)])
def test_the_interval_of_a_share_ends_at_1_and_that_of_an_error_does_not(decided, measure, ends):
    asked = Comparison("first", "is it?", Quantity("near", BASELINE, measure), None, 0.1)
    varied = [{measure: value} for value in (0.99, 1.0, 0.4, 1.0, 0.98)]
    (finding,) = decided(0.9, None, dataclasses.replace(CLAIM, comparisons=(asked,)), varied).findings
    assert (finding.interval.high == 1.0) == ends and finding.interval.high >= 1.0


def test_exactly_nothing_is_not_more_than_nothing(decided):
    energy = Comparison("first", "does energy cross?", Quantity("near", BASELINE, "cross_feature_energy"), None, 0.0)
    claim = dataclasses.replace(CLAIM, comparisons=(energy,))
    assert decided(0.9, None, claim, {"cross_feature_energy": 0.0}).verdict == "refuted"


def test_an_open_answer_that_the_verdict_does_not_hang_on_leaves_it_decided(decided):
    open_too = dataclasses.replace(COMPARISON, name="second", more=Quantity("far"))
    either = (
        Conclusion("supported", "one is enough", {"first": "yes"}),
        Conclusion("supported", "one is enough", {"second": "yes"}),
        Conclusion("refuted", "neither"),
    )
    claim = Claim("X", "It does.", (COMPARISON, open_too), either)
    assert decided(0.9 + SPREAD, 0.5, claim).verdict == "supported"
    undecided = decided(0.6 + SPREAD, 0.5, claim)
    assert undecided.verdict == "undecided" and undecided.reason == "open: does it? (not measured here)"


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "undecided"), (4, "undecided"), (5, "supported")])
def test_too_few_seeds_decide_nothing(decided, seeds, verdict):
    decision = decided(0.9 + SPREAD[:seeds], 0.5, seeds=seeds)
    assert decision.verdict == verdict
    assert verdict == "supported" or decision.reason == "open: does it? (fewer than 5 seeds)"


def test_the_finding_is_a_t_test_against_the_threshold(decided):
    ours = 0.75 + 2 * SPREAD
    (finding,) = decided(ours, 0.5).findings
    assert finding.corrected_p == pytest.approx(stats.ttest_1samp(ours - 0.5, 0.2).pvalue)
    assert finding.corrected_p > 0.01


def test_every_comparison_of_every_claim_is_in_the_family(grid, store, result):
    """Three claims with four comparisons: each answer must stand Holm's correction for all four."""
    made = grid({"seeds": (0, 1, 2, 3, 4), "learning_rates": (0.01,)})
    store.claim(made)
    for variant, scores in ((BASELINE, 0.9 + SPREAD), ("ffn_off", 0.5 + 0.2 * SPREAD[::-1])):
        store.finish(made.cell("near", variant), result(made.cell("near", variant), scores))
    ours, theirs = Quantity("near"), Quantity("near", "ffn_off")
    asked = [(ours, theirs, 0.397), (ours, None, 0.7), (theirs, None, 0.4995), (ours, None, 0.874)]
    comparisons = [Comparison("first", "does it?", more, less, threshold) for more, less, threshold in asked]
    both = dataclasses.replace(comparisons[1], name="second")
    claims = (
        dataclasses.replace(CLAIM, comparisons=(comparisons[0], both)),
        dataclasses.replace(CLAIM, name="Y", comparisons=comparisons[2:3]),
        dataclasses.replace(CLAIM, name="Z", comparisons=comparisons[3:]),
    )
    summary = summarise(made, store)
    findings = [finding for decision in decide(claims, summary) for finding in decision.findings]
    values = [0.4 + 1.2 * SPREAD, 0.9 + SPREAD, 0.5 - 0.2 * SPREAD, 0.9 + SPREAD]
    tests = [(values[0], 0.397), (values[1], 0.7), (values[2], 0.4995), (values[3], 0.874)]
    p_values = [stats.ttest_1samp(each, threshold).pvalue for each, threshold in tests]
    order, corrected, worst = np.argsort(p_values), np.empty(4), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, (4 - rank) * p_values[place])
        corrected[place] = worst
    np.testing.assert_allclose([finding.corrected_p for finding in findings], np.minimum(corrected, 1))
    alone = decide(claims[2:], summary)[0]
    assert p_values[3] < 0.05 < corrected[3] and alone.verdict == "supported"
    assert findings[3].answer == "open" and "after the correction for all comparisons" in findings[3].why_open


@pytest.mark.parametrize(
    ("ours", "answer"),
    [
        (0.5 + 0.1 * SPREAD, "yes"),
        (0.53 + SPREAD, "open"),
        (0.5 + 5 * SPREAD, "open"),  # no difference found, but too much noise to call it equal
        (0.6 + SPREAD, "no"),
        (0.4 + SPREAD, "no"),
    ],
)
def test_as_good_as_needs_a_test_of_equivalence(decided, ours, answer):
    within = dataclasses.replace(COMPARISON, threshold=0.04, within=True)
    (finding,) = decided(ours, 0.5, dataclasses.replace(CLAIM, comparisons=(within,))).findings
    assert finding.answer == answer
    if answer == "yes":
        edges = [stats.ttest_1samp(ours - 0.5, edge).pvalue / 2 for edge in (-0.04, 0.04)]
        assert finding.corrected_p == pytest.approx(max(edges))


def test_seeds_that_did_not_fail_must_show_themselves_that_a_difference_is_small(decided):
    """All eight are surely within; the four that reach the threshold are too few and too noisy to say so."""
    within = dataclasses.replace(COMPARISON, threshold=0.02, within=True)
    theirs = np.repeat([0.5, 0.95], 4)
    ours = theirs + np.array([0.001, -0.001, 0.002, -0.002, 0.03, -0.03, 0.03, -0.03])
    asked = dataclasses.replace(CLAIM, comparisons=(within,))
    assert decided(ours, theirs, asked, seeds=8).verdict == "supported"
    failing = decided(ours, theirs, asked, seeds=8, threshold=0.9)
    assert failing.verdict == "undecided" and "4 of 8 seeds failed" in failing.reason


def test_tasks_of_other_seeds_are_not_compared(grid, claim):
    tasks = {"near": {"recipe": "delay.py"}, "far": {"recipe": "delay.py", "overrides": FAR, "seeds": (7, 8)}}
    compared = claim["comparisons"][0] | {"more": {"task": "far"}}
    with pytest.raises(ConfigError, match=r"far with near seed by seed, but tasks.far has the seeds \[7, 8\]"):
        grid({"tasks": tasks, "claims": [claim | {"comparisons": [compared]}]})


def test_a_claim_says_of_its_own_cells_how_long_they_trained_and_what_its_intervals_are_over(grid, store, result):
    made = grid({"seeds": range(5), "learning_rates": (0.01,)})
    store.claim(made)
    shared = {"test_examples": [{"learning_rate": 0.01, "totals": [0.0, 1.0], "weights": [1.0, 1.0]}]}
    for variant, more in ((BASELINE, shared), ("ffn_off", shared | {"steps": [1, 2]}), ("one head", {"steps": [1, 9]})):
        store.finish(made.cell("near", variant), result(made.cell("near", variant), 0.5 + SPREAD) | more)
    summary = summarise(made, store)
    energy = Comparison("second", "energy?", Quantity("near", BASELINE, "cross_feature_energy"))
    for comparisons, said in (
        ((COMPARISON,), "over seeds and over the test examples that they share."),
        ((COMPARISON, energy), "over seeds; also over the test examples that they share for does it."),
        ((energy,), "over seeds alone."),
    ):
        asked = dataclasses.replace(CLAIM, comparisons=comparisons, conclusions=CONCLUSIONS[1:])
        (decision,) = decide((asked,), summary)
        assert format_errors(decision) == f"Intervals: {said}"
        assert format_updates(decision, summary) == ("4 on near" if comparisons == (energy,) else "2 to 4 on near")
    one_head = summary.score("near", "one head")
    assert "over seeds alone for one head" in format_errors_of_scores([summary.score("near", BASELINE), one_head])
    assert format_errors_of_scores([one_head]) == "Intervals: over seeds alone."


def test_nothing_is_within_a_threshold_of_nothing():
    with pytest.raises(ConfigError, match="set a threshold above 0"):
        dataclasses.replace(COMPARISON, threshold=0.0, within=True).rules()


def test_seeds_that_fail_must_not_turn_an_answer(decided):
    """One of five fails: with it the difference may be below the threshold, without it surely not."""
    ours = [0.95, 0.96, 0.94, 0.95, 0.1]
    decision = decided(ours, 0.5, threshold=0.9)
    (finding,) = decision.findings
    assert finding.failed == 1 and finding.rest.mean == pytest.approx(0.45) and finding.rest.low > 0.2
    assert decision.verdict == "undecided" and "1 of 5 seeds failed" in decision.reason
    below = dataclasses.replace(CLAIM, comparisons=(dataclasses.replace(COMPARISON, threshold=-0.9),))
    assert decided(ours, 0.5, below, threshold=0.9).verdict == "supported"  # with and without it
    (finding,) = decided(ours, 0.5, below).findings
    assert finding.failed == 0 and finding.rest is None  # without a threshold no seed fails


@pytest.mark.filterwarnings("error")  # the mean of no seeds is none
def test_seeds_that_fail_on_one_side_each_leave_nothing_to_compare(decided):
    decision = decided([0.95, 0.95, 0.94, 0.5, 0.5], [0.2, 0.21, 0.2, 0.95, 0.96], threshold=0.9)
    (finding,) = decision.findings
    assert finding.failed == 5 and finding.rest is None
    assert decision.verdict == "undecided" and "no seed reaches the task's threshold in both cells" in decision.reason


def test_a_variant_that_never_reaches_the_threshold_has_not_failed(decided):
    (finding,) = decided(0.8 + SPREAD, 0.5, threshold=0.95).findings
    assert finding.failed == 0 and finding.answer == "yes"


# ------------------------------------------------------------------------------- how far a verdict reaches


def last_clear(values, side):
    """The threshold below (-1) or above (1) the mean, nearest to it, that the t-test and the interval tell from it."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    student = np.mean(values) + side * stats.t.ppf(0.975, len(values) - 1) * error
    interval = bootstrap_interval(values)
    return min(student, interval.low) if side < 0 else max(student, interval.high)


@pytest.mark.parametrize(("threshold", "side", "verdict"), [(0.2, -1, "supported"), (0.7, 1, "refuted")])
def test_a_verdict_stays_until_its_tests_would_turn(decided, threshold, side, verdict):
    asked = dataclasses.replace(CLAIM, comparisons=(dataclasses.replace(COMPARISON, threshold=threshold),))
    decision = decided(0.9 + SPREAD, 0.5, asked)
    (finding,) = decision.findings
    ends = (-np.inf, last_clear(0.4 + SPREAD, -1)) if side < 0 else (last_clear(0.4 + SPREAD, 1), np.inf)
    assert decision.verdict == verdict and finding.stays == pytest.approx(ends, abs=1e-9)
    for moved, same in ((-1e-6, side < 0), (1e-6, side > 0)):
        near = dataclasses.replace(COMPARISON, threshold=ends[side < 0] + moved)
        assert (decided(0.9 + SPREAD, 0.5, dataclasses.replace(CLAIM, comparisons=(near,))).verdict == verdict) == same


def test_a_larger_family_leaves_thresholds_less_room(decided):
    """Holm: with a second comparison of a clear answer, the p of the first must be below 0.025 where it turns."""
    noisy = 0.9 + SPREAD
    other = dataclasses.replace(COMPARISON, name="second", threshold=0.3)
    alone = decided(noisy, 0.5).findings[0].stays
    both = decided(noisy, 0.5, dataclasses.replace(CLAIM, comparisons=(COMPARISON, other))).findings
    # The first becomes the larger p of two, which is not multiplied; the second is a threshold of no conclusion.
    assert both[0].stays == alone and both[1].stays == (-np.inf, np.inf)


def test_how_near_equal_stays_equal(decided):
    within = dataclasses.replace(COMPARISON, threshold=0.04, within=True)
    values = 0.001 + 0.1 * SPREAD
    decision = decided(0.5 + values, 0.5, dataclasses.replace(CLAIM, comparisons=(within,)))
    error = np.std(values, ddof=1) / np.sqrt(5)
    expected = np.mean(values) + stats.t.ppf(0.95, 4) * error
    assert decision.verdict == "supported" and decision.findings[0].stays == pytest.approx((expected, np.inf))


def test_what_is_open_or_not_measured_has_no_room(decided):
    assert decided(0.7 + SPREAD, 0.5).findings[0].stays is None
    assert decided(None, None).findings[0].stays is None


def test_at_equal_flops_a_verdict_may_turn(grid, store, result):
    """The baseline takes twice the FLOPs of ffn_off; at half its updates it is no better."""
    made = grid({"seeds": (0, 1, 2, 3, 4), "learning_rates": (0.01,)})
    store.claim(made)
    for variant, flops, (half, end) in ((BASELINE, 400, (0.5, 0.9)), ("ffn_off", 200, (0.3, 0.5))):
        found = result(made.cell("near", variant), end + (SPREAD if variant == BASELINE else 0.0))
        noise = SPREAD if variant == BASELINE else np.zeros(5)
        for each, moved in zip(found["replicas"], noise, strict=True):
            each["validation"]["r2"] = [half + moved, end + moved]
        store.finish(made.cell("near", variant), found | {"forward_flops": flops})
    decision = decide((CLAIM,), summarise(made, store))[0]
    assert decision.verdict == "supported" and decision.at_equal_flops.verdict == "refuted"
    (finding,) = decision.at_equal_flops.findings
    assert finding.interval.mean == pytest.approx(0.5 - 0.5) and decision.findings[0].interval.mean == pytest.approx(
        0.4
    )
    energy = Comparison("first", "does it?", Quantity("near", BASELINE, "cross_feature_energy"), None, 0.1)
    of_measures = dataclasses.replace(CLAIM, comparisons=(energy,))
    assert decide((of_measures,), summarise(made, store))[0].at_equal_flops is None


def test_a_quantity_of_several_tasks_is_their_mean_with_the_error_of_all_their_examples(grid, store, result):
    made = grid({"seeds": range(5)})
    store.claim(made)
    moved = {"near": np.array([0.0, 1.0, 1.0, 1.0]), "far": np.arange(8.0)}
    for cell in made.cells:
        levels = {"near": 0.9, "far": 0.5}[cell.task] + 0.01 * np.arange(len(cell.replicas))
        rates = {replica.learning_rate for replica in cell.replicas}
        sums = {"totals": moved[cell.task].tolist(), "weights": [1.0] * len(moved[cell.task])}
        store.finish(cell, result(cell, levels) | {"test_examples": [{"learning_rate": r} | sums for r in rates]})
    summary = summarise(made, store)
    near, far, both = (
        values_of(Quantity(*each), summary) for each in (("near",), ("far",), ("near", BASELINE, None, ("far",)))
    )
    np.testing.assert_allclose(both.values, (near.values + far.values) / 2)
    error = lambda examples: np.var(examples) / len(examples)  # noqa: E731
    assert error(both.examples) == pytest.approx((error(near.examples) + error(far.examples)) / 4)
    assert values_of(Quantity("near", BASELINE, "attention_entropy", ("far",)), summary) is None
    several = Comparison("c", "is it?", Quantity("near", also=("far",)), Quantity("near", "ffn_off"))
    assert [(part.task, part.variant) for part in several.parts] == [
        ("near", BASELINE),
        ("far", BASELINE),
        ("near", "ffn_off"),
    ]


@pytest.mark.parametrize(
    ("measure", "limits"),
    [
        ("attention_entropy", (0, 1)),
        ("int8_score", (None, 1)),  # of the score: an R² has no lowest value
        ("token_equivariance_error", (0, None)),
        ("object_attention_untrained", (0, None)),  # 4 where a quarter of the image has all of it
    ],
)
def test_the_interval_of_a_measure_stays_inside_of_what_it_can_be(measure, limits):
    assert measure_limits(measure, PrimaryMetric("r2", "R²", higher_is_better=True, limits=(None, 1))) == limits


# ------------------------------------------------------------------------------- the claims of configs/ablations

CONFIGS = Path(__file__).parents[2] / "configs" / "ablations"
GOLDENS = Path(__file__).parents[1] / "goldens" / "claims"
MEASURES = ("cross_feature_energy", "cross_token_energy", "token_equivariance_error", "feature_equivariance_error")


@functools.cache
def grid_of(name):
    return make_grid(parse_ablation(read_recipe(str(CONFIGS / f"{name}.py"))), CONFIGS, read_recipe)


def claims_of(name):
    """Without the grid, which takes long to make and is not needed to collect the tests."""
    return parse_ablation(read_recipe(str(CONFIGS / f"{name}.py"))).claims


CLAIMS = {claim.name: claim for name in ("cross_dimension", "scales") for claim in claims_of(name)}
CLAIMS |= {
    f"{claim.name} of {name}": claim for name in ("heads", "context", "vision", "clicks") for claim in claims_of(name)
}


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_several_verdicts_and_says_why(name):
    claim = CLAIMS[name]
    outcomes = [conclusion_of(claim, *case) for case in itertools.product((True, False), repeat=len(claim.comparisons))]
    verdicts = {verdict for verdict, _ in outcomes}
    assert len(verdicts) > 1 and verdicts <= {"supported", "refuted", "supported only when"}
    assert set(outcomes) == {(each.verdict, each.reason) for each in claim.conclusions}  # each can be reached
    assert claim.statement.endswith(".") and all(each.question.endswith("?") for each in claim.comparisons)


TRAINED = [path for path in sorted(CONFIGS.glob("*.py")) if not is_learned(read_recipe(str(path)))]


def test_a_gain_is_the_difference_of_two_tasks_by_seed(grid, store, result):
    """From `far` to `near` the baseline gains 0.3 and ffn_off 0.1, with seeds that scatter more than that."""
    made = grid({"seeds": (0, 1, 2, 3, 4), "learning_rates": (0.01,)})
    store.claim(made)
    scatter = np.array([0.0, 0.5, -0.4, 0.2, -0.3])
    noise = 0.01 * np.array([1, -1, 2, -2, 0.5])
    for task, variant, values in (
        ("near", "baseline", 0.6 + scatter + noise),
        ("far", "baseline", 0.3 + scatter),
        ("near", "ffn_off", 0.5 + scatter),
        ("far", "ffn_off", 0.4 + scatter + noise),
    ):
        store.finish(cell := made.cell(task, variant), result(cell, values))
    ours, theirs = (Quantity("near", variant, gain_over="far") for variant in ("baseline", "ffn_off"))
    comparison = Comparison("gain", "does it gain more?", ours, theirs, threshold=0.1)
    claim = Claim("C", "It gains more.", (comparison,), (Conclusion("supported", "it does"),))
    assert set(claim.quantities) == {
        ("gain", Quantity(task, variant)) for task in ("near", "far") for variant in ("baseline", "ffn_off")
    }
    (finding,) = decide([claim], summarise(made, store))[0].findings
    assert finding.answer == "yes" and finding.interval.mean == pytest.approx(0.2 + 2 * noise.mean())
    assert str(ours) == "score of baseline on near, less that on far"
    with pytest.raises(ConfigError, match="gain_over=far together with `also` or `front`"):
        Comparison("gain", "?", Quantity("near", also=("near",), gain_over="far")).rules()


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_every_threshold_has_its_reason(path):
    claims = parse_ablation(read_recipe(str(path))).claims
    assert all(comparison.because for claim in claims for comparison in claim.comparisons)


@pytest.mark.parametrize(
    ("name", "answers", "verdict"),
    [
        ("C1", (True, True), "refuted"),
        ("C1", (False, False), "supported"),
        ("C1", (True, False), "supported only when"),
        ("C2", (False, False, True, True, False), "supported only when"),
        ("C2", (False, False, True, False, False), "supported only when"),
        ("C2", (True, False, True, True, False), "supported only when"),
        ("C2", (True, True, True, True, False), "supported only when"),
        ("C2", (False, False, True, True, True), "supported"),
        ("C2", (False, True, True, True, False), "supported"),
        ("C2", (False, False, False, False, False), "refuted"),
        ("C3", (True, False), "supported"),
        ("C3", (True, True), "refuted"),
        ("C4", (True, True), "supported"),
        ("C4", (True, False), "supported only when"),
        ("C4", (False, False), "refuted"),
        ("C7", (True,), "supported"),
        ("C7", (False,), "refuted"),
        ("C8", (True, True), "supported only when"),
        ("C8", (False, True), "refuted"),
        ("C8 of heads", (True, False, False, True, True, False, False), "supported only when"),
        ("C8 of heads", (True, True, True, True, True, False, False), "supported only when"),
        ("C8 of heads", (True, True, True, True, True, True, False), "supported only when"),
        ("C8 of heads", (True, True, True, True, True, True, True), "supported"),
        ("C8 of heads", (True, True, False, True, True, True, True), "supported only when"),
        ("C8 of heads", (False, True, True, True, True, False, False), "refuted"),
        ("C8 of heads", (True, True, True, True, False, True, True), "refuted"),
        ("C5 of context", (False, True, False, True, True, False), "supported only when"),
        ("C5 of context", (False, True, True, True, True, False), "supported only when"),
        ("C5 of context", (True, True, True, True, True, True), "supported"),
        ("C5 of context", (False, False, False, False, False, False), "refuted"),
        ("C5 of context", (False, False, False, False, True, False), "supported only when"),
        ("C16 of context", (False, False, True, True, True, True, True, True), "supported only when"),
        ("C16 of context", (False, True, True, True, True, True, True, True), "supported only when"),
        ("C16 of context", (False, False, False, False, False, False, True, True), "supported only when"),
        ("C16 of context", (True, True, True, True, True, True, True, True), "supported"),
        ("C16 of context", (True, True, True, True, False, True, True, True), "supported only when"),
        ("C16 of context", (False, False, True, True, True, True, False, False), "supported only when"),
        ("C16 of context", (False, False, False, False, False, False, False, False), "refuted"),
        ("C5 of context", (False, False, False, True, True, False), "supported only when"),
        ("C5 of vision", (True, False, False, False), "supported only when"),
        ("C5 of vision", (False, False, False, False), "refuted"),
        ("C14 of vision", (False, True, False, False, False), "refuted"),
        ("C14 of vision", (True, True, False, False, False), "supported only when"),
        ("C6 of clicks", (True, True, True, True, True, True, True), "refuted"),
        ("C10", (True, False, False, False, True, True, True), "supported only when"),
        ("C10", (True, False, False, False, False, False, False), "supported only when"),
        ("C10", (True, False, True, False, True, True, True), "supported"),
        ("C10", (True, True, False, False, True, True, True), "refuted"),
        ("C11", (True, False, True), "supported only when"),
        ("C11", (True, False, False), "supported only when"),
        ("C11", (False, False, True), "supported"),
        ("C11", (True, True, True), "refuted"),
        ("C12", (False, True, True), "refuted"),
        ("C12", (False, True, False), "refuted"),
        ("C12", (False, False, True), "supported"),
    ],
)
def test_verdicts_follow_from_answers(name, answers, verdict):
    assert conclusion_of(CLAIMS[name], *answers)[0] == verdict


@pytest.mark.parametrize(
    ("name", "answers", "words"),
    [
        ("C5 of vision", (True, True, True, False), "are to be related, far away or nearby within these updates"),
        ("C5 of vision", (False, True, True, False), "nearby and on digits it does not"),
        ("C6 of clicks", (True, True, True, False, True, True, True), "the vectors meet in a perceptron"),
        ("C6 of clicks", (True, True, False, True, True, True, False), "a perceptron stays behind, and on flights"),
        ("C6 of clicks", (True, False, False, False, True, False, False), "also of narrow ones"),
    ],
)
def test_a_reason_says_what_was_answered(name, answers, words):
    assert words in conclusion_of(CLAIMS[name], *answers)[1]


NAMES = {
    "C18": (
        *("attention", "values", "FFN", "attention's Jacobian", "FFN's Jacobian"),
        *("attention's output", "FFN's output"),
    ),
    "C19": ("words correlate", "words differ", "input correlates", "input differs", "block differs"),
    "C20": ("output", "change", "all", "one"),
}


@pytest.mark.parametrize("claim", NAMES)
def test_every_conclusion_on_a_pretrained_model_can_be_reached(claim):
    cases = itertools.product((True, False), repeat=len(NAMES[claim]))
    outcomes = {first_that_applies(OF_PRETRAINED[claim], NAMES[claim], *case) for case in cases}
    assert outcomes == {(each.verdict, each.reason) for each in OF_PRETRAINED[claim]}


@pytest.mark.parametrize(
    ("claim", "answers", "verdict"),
    [
        ("C18", ("open", "open", "yes", "yes", "yes", "open", "yes"), "undecided"),
        ("C18", ("yes", "open", "yes", "open", "open", "no", "no"), "refuted"),  # whatever the open ones are
        ("C18", ("yes", "open", "open", "yes", "yes", "no", "yes"), "undecided"),  # the reason depends on the FFN
        ("C18", ("no", "no", "yes", "yes", "yes", "no", "yes"), "supported only when"),
        ("C19", ("yes", "no", "yes", "open", "yes"), "refuted"),
        ("C19", ("yes", "no", "yes", "no", "no"), "supported only when"),
        ("C20", ("no", "no", "yes", "yes"), "refuted"),
        ("C20", ("no", "open", "no", "open"), "supported only when"),
        ("C20", ("yes", "open", "no", "no"), "undecided"),
    ],
)
def test_verdicts_on_a_pretrained_model_follow_from_answers(claim, answers, verdict):
    rows = {
        name: Row("is it?", Interval(0.0, 0.0, 0.0), 0.0, answer, "")
        for name, answer in zip(NAMES[claim], answers, strict=True)
    }
    assert concluded(claim, rows)[0] == verdict


def test_a_cut_without_p_ends_with_its_interval():
    cut = Judged("a", "all", {"WordSim": 0.5}, {"WordSim": Interval(0.0, 0.0, 0.0)}, {"WordSim": np.nan}, None)
    assert "+0.000 [+0.000, +0.000]" in cut_rows(Findings((cut,), {}))[0]


def made_up(cell, scenario):
    """A result that follows from names alone."""
    rng = np.random.default_rng(zlib.crc32(f"{scenario}/{cell.task}/{cell.variant}".encode()))
    level, noise = rng.choice([0.0, 0.03, 0.3, 1.0]), rng.choice([0.001, 0.001, 0.001, 0.2])
    exact = {measure: float(rng.choice([0.0, 0.005, 0.5])) for measure in MEASURES}
    replicas = []
    for replica in cell.replicas:
        validation, test = (float(level + noise * rng.normal()) for _ in range(2))
        replicas.append(
            {
                "seed": replica.seed,
                "learning_rate": replica.learning_rate,
                "validation": {cell.primary_metric.name: [validation]},
                "test": {cell.primary_metric.name: test},
                "measures": {measure: value * float(1 + 0.01 * rng.normal()) for measure, value in exact.items()},
            }
        )
    costs = {"parameters": 100, "forward_flops": 200, "seconds": 1.0}
    return {"task": cell.task, "variant": cell.variant, "bound": None, "steps": [10], "replicas": replicas} | costs


SCENARIOS = [("cross_dimension", k) for k in (0, 3, 15, 17, 25, 27, 28, 40)]
SCENARIOS += [("scales", k) for k in (0, 11, 26)]


@pytest.mark.parametrize(("name", "scenario"), SCENARIOS)
def test_the_same_results_have_the_same_verdicts_as_ever(name, scenario):
    """In cases that between them have nearly every outcome of every claim; `UPDATE_GOLDENS=1` writes them again."""
    grid = grid_of(name)
    compared = {(each.task, each.variant) for claim in grid.config.claims for _, each in claim.quantities}
    cells = [cell for cell in grid.cells if (cell.task, cell.variant) in compared]
    tasks = {task: dataclasses.replace(entry, threshold=None) for task, entry in grid.config.tasks.items()}
    config = dataclasses.replace(grid.config, tasks=tasks, score_tolerance=0.0)
    scores = (score_of(cell, made_up(cell, scenario), config) for cell in cells)
    # As if their rates had been found: the scores that are made up do not depend on the rate.
    summary = Summary(grid, tuple(dataclasses.replace(score, rate_edge=None) for score in scores), (), (), ())
    path, said = GOLDENS / f"{name}.md", as_markdown(summary, decide_all(summary)).strip()
    goldens = dict(re.findall(r"<!-- scenario (\d+) -->\n(.*?)\n*(?=<!-- scenario|\Z)", path.read_text(), re.DOTALL))
    if os.environ.get("UPDATE_GOLDENS"):
        kept = [str(number) for each, number in SCENARIOS if each == name]
        goldens = {number: goldens.get(number, "") for number in kept} | {str(scenario): said}
        path.write_text("\n\n".join(f"<!-- scenario {number} -->\n{text}" for number, text in goldens.items()) + "\n")
    assert said == goldens.get(str(scenario)), f"UPDATE_GOLDENS=1 writes {path}, unless the change is a mistake"
