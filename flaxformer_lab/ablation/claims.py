"""The claims of the debate as code: what is said, which comparison decides it, by how much, and what follows.

A comparison is between two figures on one task (scores, or measures of mixing), paired by seed. It is decided where the
95% interval of their difference lies on one side of a threshold, and open where the interval holds the threshold.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from flaxformer_lab.ablation.grid import BASELINE
from flaxformer_lab.ablation.statistics import Interval, bootstrap_interval
from flaxformer_lab.ablation.summary import Score, Summary
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import nearest

Answer = Literal["yes", "no", "open"]
Verdict = Literal["supported", "refuted", "supported only when", "undecided"]


@dataclass(frozen=True)
class Figure:
    """One figure of one cell: its score, or a measure by name."""

    task: str
    variant: str = BASELINE
    measure: str | None = None

    def of(self, score: Score) -> Float[np.ndarray, " seeds"]:
        return score.values if self.measure is None else score.measures[self.measure]

    def __str__(self) -> str:
        return f"{self.measure or 'score'} of {self.variant} on {self.task}"


@dataclass(frozen=True)
class Comparison:
    """Is `more` above `less` (or above 0, without it) by more than `threshold`?"""

    question: str
    more: Figure
    less: Figure | None
    threshold: float


@dataclass(frozen=True)
class Finding:
    """What a comparison found: the difference with its interval, and the answer."""

    comparison: Comparison
    interval: Interval | None  # None where a cell is missing
    answer: Answer


@dataclass(frozen=True)
class Claim:
    """rule: from the answers, in the order of the comparisons, to a verdict and its condition (or what speaks)."""

    id: str
    statement: str
    comparisons: tuple[Comparison, ...]
    rule: Callable[..., tuple[Verdict, str]]
    source: str = "the debate that founded the lab: docs/science.md"


@dataclass(frozen=True)
class Decision:
    """A claim with its verdict. reason: what follows from the findings, in one sentence."""

    claim: Claim
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]


def decide(claim: Claim, summary: Summary) -> Decision:
    """The verdict of one claim; undecided where it depends on an answer that is open."""
    findings = tuple(_find(comparison, summary) for comparison in claim.comparisons)
    outcome = conclude(claim.rule, [finding.answer for finding in findings])
    if outcome is not None:
        return Decision(claim, *outcome, findings)
    unclear = [finding for finding in findings if finding.answer == "open"]
    why = "not measured here" if any(f.interval is None for f in unclear) else "the interval holds the threshold"
    questions = "; ".join(finding.comparison.question for finding in unclear)
    return Decision(claim, "undecided", f"open: {questions} ({why})", findings)


def conclude(rule: Callable[..., tuple[Verdict, str]], answers: Iterable[Answer]) -> tuple[Verdict, str] | None:
    """What the rule says whichever way the open answers turn out; None where it depends on them."""
    possible = [(True, False) if answer == "open" else (answer == "yes",) for answer in answers]
    outcomes = {rule(*each) for each in itertools.product(*possible)}
    return outcomes.pop() if len(outcomes) == 1 else None


def answer_to(interval: Interval, threshold: float) -> Answer:
    """Whether the figure is above the threshold; open where its interval holds it, or is unknown."""
    if interval.low > threshold:
        return "yes"
    return "no" if interval.high <= threshold else "open"


def named(ids: Iterable[str]) -> tuple[Claim, ...]:
    """The claims of these names.

    Raises:
        ConfigError: a name that is none.
    """
    for name in ids:
        if name not in CLAIMS:
            raise ConfigError(
                f"claims names {name}, which is no claim: {nearest(name, CLAIMS)}choose from {', '.join(CLAIMS)}"
            )
    return tuple(CLAIMS[name] for name in ids)


def _find(comparison: Comparison, summary: Summary) -> Finding:
    more = summary.score(comparison.more.task, comparison.more.variant)
    less = None if comparison.less is None else summary.score(comparison.less.task, comparison.less.variant)
    if more is None or (less is None and comparison.less is not None):
        return Finding(comparison, None, "open")
    values = comparison.more.of(more)
    if less is not None and comparison.less is not None:
        values = values - comparison.less.of(less)
    interval = bootstrap_interval(values)
    return Finding(comparison, interval, answer_to(interval, comparison.threshold))


# -------------------------------------------------------------------------------------------------- the claims


def _c1(crosses: bool, learns: bool) -> tuple[Verdict, str]:
    if crosses and learns:
        return "refuted", "with dense projections a feature of Q meets all of them; only per_dimension keeps them apart"
    return "supported", "dense projections do no better than one head a feature"


def _c2(little: bool, much: bool, table: bool, other: bool, left: bool) -> tuple[Verdict, str]:
    hurt = little or much or table or other
    if hurt and not left:
        return (
            "supported only when",
            "nothing evens the scales first: raw features cost accuracy, and dividing each by its spread gives it back",
        )
    if hurt:
        return "supported", "unequal scales cost accuracy, and standardising them does not give it back"
    return "refuted", "unequal scales cost nothing"


def _c3(mixes: bool, apart: bool) -> tuple[Verdict, str]:
    if mixes and not apart:
        return "supported", "dense projections spread each feature's energy over all; diagonal ones leave exactly none"
    return "refuted", "the projections do not decide whether features mix"


def _c4(two: bool, four: bool) -> tuple[Verdict, str]:
    if two and four:
        return "supported", "each head that is added follows one more pointer"
    return "refuted", "more heads do not follow more pointers"


def _c7(wide: bool) -> tuple[Verdict, str]:
    if wide:
        return "supported", "one head of eight features compares whole vectors; eight heads of one cannot"
    return "refuted", "a head of one feature compares vectors as well as a head of all of them"


def _c8(heads_help: bool, heads_harm: bool) -> tuple[Verdict, str]:
    if heads_help and heads_harm:
        return (
            "supported only when",
            "several relations are asked for at once; one comparison of whole vectors wants one wide head",
        )
    if heads_help:
        return "supported", "heads help, and narrow ones do no harm"
    return "refuted", "heads do not help"


def _c10(gelu: bool, without: bool, linear: bool, odd: bool) -> tuple[Verdict, str]:
    if gelu and not (without or linear or odd):
        return (
            "supported only when",
            "the FFN is neither linear nor odd: attention alone, a linear and a tanh FFN stay at 0",
        )
    if gelu and not without:
        return "supported", "with an FFN the product of two features is learned, without it not"
    return "refuted", "the product is learned without an FFN, or not at all"


def _c11(several: bool, one: bool) -> tuple[Verdict, str]:
    if several and not one:
        return (
            "supported only when",
            "a sequence has a single token: W_q W_k^T merges exactly, but with several tokens the softmax makes "
            "attention alone learn what no linear network can",
        )
    return (
        ("refuted", "attention alone learns what no linear network can") if several else ("supported", "no difference")
    )


def _c12(tokens: bool, features: bool) -> tuple[Verdict, str]:
    if features and not tokens:
        return "refuted", "permuted tokens give permuted outputs; permuted features give other ones"
    return "supported", "both axes are treated alike"


def _score(task: str, variant: str = BASELINE) -> Figure:
    return Figure(task, variant)


CLAIMS: Mapping[str, Claim] = {
    claim.id: claim
    for claim in (
        Claim(
            "C1",
            "The first feature of Q only ever meets the first feature of K: attention captures nothing across them.",
            (
                Comparison(
                    "does energy cross features?",
                    Figure("rotation", BASELINE, "cross_feature_energy"),
                    Figure("rotation", "per_dimension", "cross_feature_energy"),
                    0.1,
                ),
                Comparison(
                    "does dense attention learn a rotation that per_dimension cannot?",
                    _score("rotation"),
                    _score("rotation", "per_dimension"),
                    0.5,
                ),
            ),
            _c1,
        ),
        Claim(
            "C2",
            "Transformers work only where the features' scales were made even; with unequal scales they fail.",
            (
                *(
                    Comparison(f"does standardising help on {task}?", _score(task), _score(task, "raw"), threshold)
                    for task, threshold in (
                        ("nearest_100", 0.05),
                        ("nearest_10000", 0.05),
                        ("wine", 0.02),
                        ("breast_cancer", 0.02),
                    )
                ),
                Comparison(
                    "is anything lost that standardising does not give back?",
                    _score("nearest_1"),
                    _score("nearest_10000"),
                    0.02,
                ),
            ),
            _c2,
        ),
        Claim(
            "C3",
            "Every feature of Q, K and V is a weighted sum of all input features.",
            (
                Comparison(
                    "does energy cross features through dense projections alone?",
                    Figure("rotation", "diagonal output", "cross_feature_energy"),
                    None,
                    0.1,
                ),
                Comparison(
                    "does it through diagonal ones?",
                    Figure("rotation", "per_dimension", "cross_feature_energy"),
                    None,
                    0.0,
                ),
            ),
            _c3,
        ),
        Claim(
            "C4",
            "One attention finds one relation; more attentions find more.",
            (
                Comparison(
                    "do 2 heads follow more than 1?", _score("pointers", "2 heads"), _score("pointers", "1 head"), 0.15
                ),
                Comparison("do 4 heads follow more than 2?", _score("pointers"), _score("pointers", "2 heads"), 0.15),
            ),
            _c4,
        ),
        Claim(
            "C7",
            "Every dot product of q and k already uses all features.",
            (
                Comparison(
                    "does 1 head of 8 features beat 8 heads of 1?",
                    _score("nearest"),
                    _score("nearest", "8 heads of 1"),
                    0.2,
                ),
            ),
            _c7,
        ),
        Claim(
            "C8",
            "Too many features in one dot product make attention uniform; heads restore diversity.",
            (
                Comparison(
                    "do 4 heads beat 1 on four pointers?", _score("pointers"), _score("pointers", "1 head"), 0.2
                ),
                Comparison(
                    "does 1 wide head beat 8 narrow ones on nearest?",
                    _score("nearest"),
                    _score("nearest", "8 heads of 1"),
                    0.2,
                ),
            ),
            _c8,
        ),
        Claim(
            "C10",
            "The FFN is the dense connection across features; stacking attention and FFN gives cross-feature capture.",
            (
                Comparison("is the product learned with a gelu FFN?", _score("product"), None, 0.5),
                Comparison("without an FFN?", _score("product", "ffn_off"), None, 0.5),
                Comparison("with a linear FFN?", _score("product", "linear_ffn"), None, 0.5),
                Comparison("with an odd (tanh) FFN?", _score("product", "tanh FFN"), None, 0.5),
            ),
            _c10,
        ),
        Claim(
            "C11",
            "Nothing nonlinear stands between the W's and QK, so they are just another linear layer.",
            (
                Comparison(
                    "does attention alone beat a linear network with four tokens?",
                    _score("product_of_three"),
                    _score("product_of_three", "linear_only"),
                    0.2,
                ),
                Comparison("does it learn with a single token?", _score("product_of_three", "one token"), None, 0.2),
            ),
            _c11,
        ),
        Claim(
            "C12",
            "For an input of shape [1, 3, 2] the axis of 3 and the axis of 2 are treated alike.",
            (
                Comparison(
                    "do permuted tokens change more than the order?",
                    Figure("nearest", BASELINE, "token_equivariance_error"),
                    None,
                    0.01,
                ),
                Comparison(
                    "do permuted features?", Figure("nearest", BASELINE, "feature_equivariance_error"), None, 0.1
                ),
            ),
            _c12,
        ),
    )
}
