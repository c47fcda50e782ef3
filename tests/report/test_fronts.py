"""Pareto fronts, and what is decided at equal cost."""

import dataclasses
import math

import numpy as np
import pytest

from flaxformer_lab.ablation.claim_config import Claim, Comparison, Conclusion, Quantity
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.report.claims import decide
from flaxformer_lab.report.figures import front_chart, front_panels
from flaxformer_lab.report.fronts import front_weights, on_front, shared_costs
from flaxformer_lab.report.page import as_page
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.report.svg import as_file
from flaxformer_lab.report.write import as_markdown

SPREAD = np.array([-0.002, -0.001, 0.0, 0.001, 0.002])
CHEAP, DEAR = ("cheap 1", "cheap 2"), ("dear 1", "dear 2", "dear 3")
# A decade of bytes is worth 0.2 to both; the second needs twice as many, and its third member is none of its front.
BYTES = dict(zip((*CHEAP, *DEAR), (100, 1000, 200, 2000, 800), strict=True))
SCORES = dict(zip((*CHEAP, *DEAR), (0.6, 0.8, 0.6, 0.8, 0.55), strict=True))
GAP = 0.2 * math.log10(2)


def comparison(**changes):
    more, less = (Quantity("near", front=names) for names in (CHEAP, DEAR))
    return dataclasses.replace(
        Comparison("bytes", "do cheap ones win?", more, less, at_equal="float32_bytes"), **changes
    )


def claim(**changes):
    conclusions = Conclusion("supported", "so it is", {"bytes": "yes"}), Conclusion("refuted", "it is not")
    return Claim("C0", "Cheap ones win.", (comparison(**changes),), conclusions)


@pytest.fixture
def summary(grid, store, result):
    """Of two families with the same scores, one of which needs twice the bytes; its latencies are noisy."""
    variants = {name: {"model": {"ffn": {"expansion": 2.0 + k}}} for k, name in enumerate(BYTES)}
    series = {"cheap": CHEAP, "dear": DEAR}
    task = {"near": {"recipe": "delay.py"}}
    made = grid(
        {"tasks": task, "variants": variants, "series": series, "seeds": (0, 1, 2, 3, 4), "learning_rates": (0.01,)}
    )
    store.claim(made)
    for cell in made.cells:
        found = result(cell, SCORES.get(cell.variant, 0.5) + SPREAD * (1 if cell.variant in CHEAP else -1))
        for k, each in enumerate(found["replicas"]) if cell.variant in BYTES else ():
            size = BYTES[cell.variant]
            each["measures"] = {"float32_bytes": size, "int8_bytes": size / 3, "int8_score": each["test"]["r2"] - 0.1}
            each["measures"] |= {"float32_latency": size / 10 + k, "int8_latency": size / 20 + k}
        store.finish(cell, found)
    return summarise(made, store)


def test_a_front_has_what_is_better_than_all_that_is_cheaper():
    costs, scores = np.array([3.0, 1.0, 2.0, 4.0, 1.0]), np.array([0.7, 0.5, 0.4, 0.7, 0.6])
    better = [k for k in range(5) if all(scores[k] > scores[j] for j in range(5) if costs[j] < costs[k])]
    assert sorted(on_front(costs, scores)) == sorted(set(better) - {1})  # 4 costs the same and is better


def test_a_front_lies_on_lines_in_the_logarithm_and_ends_level():
    weights = front_weights(np.array([1.0, 10.0, 50.0]), np.array([0.5, 0.7, 0.6]), (1.0, 100.0))
    np.testing.assert_allclose(weights, [0.25, 0.75, 0.0], atol=1e-3)


def test_fronts_share_the_costs_that_both_have():
    assert shared_costs(np.array([1.0, 9.0]), np.array([2.0, 20.0])) == (2.0, 9.0)
    assert shared_costs(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == (3.0, 4.0)
    assert shared_costs(np.array([2.0, 2.0]), np.array([2.0, 2.0])) is None


def test_a_family_that_is_cheaper_throughout_stays_at_its_best():
    costs, scores = np.array([1.0, 2.0, 1.5]), np.array([0.5, 0.7, 0.6])
    assert front_weights(costs, scores, (3.0, 4.0)).tolist() == [0, 1, 0]


def test_the_difference_at_equal_cost_is_that_of_the_fronts_and_stays_while_costs_are_nearly_right(summary):
    (decision,) = decide((claim(cost_ratio=1.25),), summary)
    (finding,) = decision.findings
    assert decision.verdict == "supported" and finding.interval.low > 0
    assert finding.interval.mean == pytest.approx(GAP, abs=1e-3)
    assert finding.stays_to_ratio == 1.5  # with twice the bytes both would be the same


def test_an_answer_that_turns_on_the_cost_is_open(summary):
    (decision,) = decide((claim(cost_ratio=2.0),), summary)
    assert decision.verdict == "undecided" and "off by 2 times" in decision.reason


def test_latencies_whose_seeds_differ_decide_nothing(summary):
    steady, noisy = (decide((claim(at_equal=cost),), summary)[0] for cost in ("forward_flops", "float32_latency"))
    assert steady.findings[0].why_open == "not measured here"  # all have the same FLOPs: no range
    assert noisy.verdict == "supported"
    for score in summary.scores:
        if score.variant in BYTES:
            score.measures["float32_latency"] *= np.array([1, 1, 1, 1, 3])
    (noisy,) = decide((claim(at_equal="float32_latency"),), summary)
    assert noisy.verdict == "undecided" and "off by 4.2 times" in noisy.reason


def test_int8_is_judged_by_its_own_score(summary):
    more, less = (Quantity("near", measure="int8_score", front=names) for names in (CHEAP, DEAR))
    (decision,) = decide((claim(more=more, less=less, at_equal="int8_bytes"),), summary)
    assert decision.findings[0].interval.mean == pytest.approx(GAP, abs=1e-3)


@pytest.mark.parametrize(
    "changes", [{"at_equal": None}, {"less": None}, {"less": Quantity("near")}, {"more": Quantity("near", "cheap 1")}]
)
def test_fronts_and_what_is_equal_belong_together(changes):
    with pytest.raises(ConfigError, match="`front` in both"):
        comparison(**changes).rules()


def test_the_report_has_the_fronts_and_what_files_cost(summary):
    decisions = decide((claim(cost_ratio=1.25),), summary)
    page, text = as_page(summary, decisions), as_markdown(summary, decisions)
    assert page.count("front by front") == 6 and "Cost of use on near" in page
    assert "| dear 2 | 2,000 | 667 | 200 | 202.0 | 102.0 |" in text
    assert "the same with costs 1.5 times as high or low" in text and "Equal training FLOPs: not asked" in text


def test_panels_are_a_file_that_says_all_in_words(summary):
    families = {
        name: [summary.score("near", each) for each in names] for name, names in summary.grid.config.series.items()
    }
    text = as_file(front_panels(families))
    assert text.startswith("<svg ") and 'xmlns="http://www.w3.org/2000/svg"' in text and text.count("<title>") > 20
    chart = front_chart(families, "float32_bytes", "float32")
    assert "cheap 0.600 at 100, 0.800 at 1,000; dear 0.600 at 200, 0.800 at 2,000" in chart  # one of dear's is no front
