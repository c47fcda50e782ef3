"""The page of the debate from made-up evidence."""

import re

from flaxformer_lab.report.debate import Evidence, Row, Topic, as_debate, evidence_of_benchmark
from flaxformer_lab.report.statistics import Interval

TOPICS = (Topic("C1", "It mixes."), Topic("C2", "It scales.", "weather <data>"), Topic("C3", "It is dear."))
MIXES = Evidence(
    "C1",
    "It mixes.",
    "supported only when",
    "there is -1 of it",
    (
        Row("does it?", Interval(0.5, 0.4, 0.6), 0.1, "yes", "0.500 [0.400, 0.600]"),
        Row("and here?", Interval(-0.2, -0.3, -0.1), 0.1, "no", "-0.200 [-0.300, -0.100]"),
    ),
    ("Measured with 5 seeds.",),
    (("table of near", "x.html#task-1"), ("raw numbers", "x.csv.gz")),
)
ANSWERS = [
    {"question": "dearer?", "ratio": 3.0, "low": 2.0, "high": 4.0, "threshold": 1.2, "answer": "yes"},
    {"question": "here too?", "ratio": 0.5, "low": 0.4, "high": 0.6, "threshold": 1.0, "answer": "no"},
]
COST = evidence_of_benchmark(
    "C3", "", {"verdict": "supported", "reason": "so", "answers": ANSWERS}, "a machine", (("raw", "y.json"),)
)


def cards(page):
    return dict(re.findall(r'<article id="(C\d)"[^>]*>(.*?)</article>', page))


def test_every_claim_has_its_verdict_its_numbers_and_its_links():
    page = as_debate(TOPICS, (MIXES, COST))
    first, second, third = cards(page).values()
    assert "</span> supported only when</span>" in first and "Supported only when there is −1 of it." in first
    assert "<li>Does it? <strong>yes</strong>: 0.500 [0.400, 0.600].</li>" in first
    assert '<a href="x.html#task-1">table of near</a>' in first and "Measured with 5 seeds." in first
    assert "</span> open</span>" in second and "Open: needs weather &lt;data&gt;." in second and "<svg" not in second
    assert "3.000 [2.000, 4.000] times as much, threshold 1.2" in third and "measured on a machine" in third
    assert "It mixes. <strong>supported under a condition</strong>" in page
    assert "Of 3 claims: 1 supported, 1 supported only when, 1 open." in page
    assert page == as_debate(TOPICS, (MIXES, COST))


def test_the_first_evidence_decides_and_others_are_told():
    other = Evidence("C1", "", "refuted", "another probe", (), (), ())
    page = as_debate(TOPICS, (MIXES, other))
    assert "1 supported only when, 2 open." in page and "Asked in another way: refuted" in cards(page)["C1"]


def places(svg, class_):
    """Where marks and lines of a class begin, across."""
    found = re.findall(rf'<g class="{class_}[^"]*">(?:<title>.*?</title>)?<(?:circle cx="|path d="M )([\d.]+)', svg)
    return [float(each) for each in found]


def test_a_figure_has_each_answer_on_its_side_of_its_threshold():
    for evidence, logarithmic in ((MIXES, False), (COST, True)):
        svg = re.search(r"<svg.*?</svg>", as_debate(TOPICS, (evidence,)))[0]
        marks, thresholds, (zero,) = places(svg, "mark"), places(svg, "threshold"), places(svg, "zero")
        assert len(marks) == len(thresholds) == 2
        assert [a > b for a, b in zip(marks, thresholds, strict=True)] == [True, False]
        assert marks[0] > zero > marks[1]
        label = re.search(r'aria-label="([^"]*)"', svg)[1]
        for k, row in enumerate(evidence.rows, 1):
            assert f"{k} {row.question} {row.answer}, " in label
        assert label.startswith("Ratios" if logarithmic else "Differences")
