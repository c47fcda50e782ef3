"""Verdicts from made-up figures."""

import dataclasses

import numpy as np
import pytest

from flaxformer_lab.ablation.grid import BASELINE
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.report.claims import CLAIMS, Claim, Comparison, Figure, decide, named
from flaxformer_lab.report.summary import summarise

COMPARISON = Comparison("does it?", Figure("near"), Figure("near", "ffn_off"), 0.2)


def rule(yes):
    return ("supported", "it does") if yes else ("refuted", "it does not")


CLAIM = Claim("X", "It does.", (COMPARISON,), rule)


@pytest.fixture
def decided(grid, store, result):
    """The function that decides a claim from scores of the baseline and of ffn_off on one task."""

    def decision(ours, theirs, claim=CLAIM, measures=None):
        made = grid({"seeds": (0, 1, 2, 3, 4), "learning_rates": (0.01,)})
        store.claim(made)
        for variant, scores in ((BASELINE, ours), ("ffn_off", theirs)):
            if scores is not None:
                cell = made.cell("near", variant)
                store.finish(cell, result(cell, scores, measures))
        return decide(claim, summarise(made, store))

    return decision


SPREAD = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (0.9, 0.5, "supported"),
        (0.6, 0.5, "refuted"),
        (0.5, 0.9, "refuted"),
        (0.7 + SPREAD, 0.5, "undecided"),  # the threshold lies inside the interval
        (0.9 + 10 * SPREAD, 0.5, "supported"),
        (0.9 + 30 * SPREAD, 0.5, "undecided"),  # too much noise to tell
        (0.9 + 30 * SPREAD, 0.5 + 30 * SPREAD, "supported"),  # but the same noise for both: seeds are paired
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
        assert decision.reason == rule(verdict == "supported")[1]


def test_the_finding_is_the_paired_difference(decided):
    (finding,) = decided(0.9 + SPREAD, 0.5).findings
    assert finding.interval.mean == pytest.approx(0.4) and finding.answer == "yes"
    assert finding.interval.low < 0.4 < finding.interval.high < 0.45


def test_a_measure_can_decide(decided):
    energy = Comparison("does energy cross?", Figure("near", BASELINE, "cross_feature_energy"), None, 0.1)
    claim = dataclasses.replace(CLAIM, comparisons=(energy,))
    assert decided(0.9, None, claim).verdict == "supported"
    none = {"cross_feature_energy": 0.0, "cross_token_energy": 0.0}
    assert decided(0.9, None, claim, none).verdict == "refuted"


def test_exactly_nothing_is_not_more_than_nothing(decided):
    energy = Comparison("does energy cross?", Figure("near", BASELINE, "cross_feature_energy"), None, 0.0)
    claim = dataclasses.replace(CLAIM, comparisons=(energy,))
    assert decided(0.9, None, claim, {"cross_feature_energy": 0.0}).verdict == "refuted"


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_every_verdict_of_its_rule_and_says_why(name):
    claim = CLAIMS[name]
    number = len(claim.comparisons)
    outcomes = [claim.rule(*(bool(case >> place & 1) for place in range(number))) for case in range(2**number)]
    verdicts = {verdict for verdict, _ in outcomes}
    assert len(verdicts) > 1 and verdicts <= {"supported", "refuted", "supported only when"}
    assert all(reason for _, reason in outcomes)
    assert claim.statement.endswith(".") and all(each.question.endswith("?") for each in claim.comparisons)


@pytest.mark.parametrize(
    ("name", "answers", "verdict"),
    [
        ("C1", (True, True), "refuted"),
        ("C1", (False, False), "supported"),
        ("C2", (True, True, True, True, False), "supported only when"),
        ("C2", (False, False, True, False, False), "supported only when"),
        ("C2", (False, True, False, False, True), "supported"),
        ("C2", (False, False, False, False, False), "refuted"),
        ("C3", (True, False), "supported"),
        ("C3", (True, True), "refuted"),
        ("C4", (True, True), "supported"),
        ("C4", (True, False), "refuted"),
        ("C7", (True,), "supported"),
        ("C7", (False,), "refuted"),
        ("C8", (True, True), "supported only when"),
        ("C8", (False, True), "refuted"),
        ("C10", (True, False, False, False), "supported only when"),
        ("C10", (True, True, False, False), "refuted"),
        ("C11", (True, False), "supported only when"),
        ("C11", (False, False), "supported"),
        ("C12", (False, True), "refuted"),
        ("C12", (False, False), "supported"),
    ],
)
def test_verdicts_follow_from_answers(name, answers, verdict):
    assert CLAIMS[name].rule(*answers)[0] == verdict


def test_an_open_answer_that_the_verdict_does_not_hang_on_leaves_it_decided(decided):
    def either(one, other):
        return ("supported", "one is enough") if one or other else ("refuted", "neither")

    open_too = dataclasses.replace(COMPARISON, more=Figure("far"))
    claim = Claim("X", "It does.", (COMPARISON, open_too), either)
    assert decided(0.9, 0.5, claim).verdict == "supported"
    undecided = decided(0.6, 0.5, claim)
    assert undecided.verdict == "undecided" and undecided.reason == "open: does it? (not measured here)"


def test_a_claim_that_is_none_is_refused():
    assert [claim.id for claim in named(["C4", "C1"])] == ["C4", "C1"]
    with pytest.raises(ConfigError, match=r"claims names C99, which is no claim: .*choose from C1"):
        named(["C1", "C99"])
