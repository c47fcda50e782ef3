"""The HTML report: its figures are the summary's, names stay names, and a browser finds nothing to complain about."""

import itertools
import json
import re
import warnings
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab.ablation.claim_config import Claim, Comparison, Conclusion, Quantity
from flaxformer_lab.ablation.grid import BASELINE
from flaxformer_lab.report.claims import decide
from flaxformer_lab.report.formatting import (
    format_clarity,
    format_ends,
    format_errors,
    format_interval,
    format_mean,
    format_p_value,
    format_reach,
    format_steps_to_threshold,
)
from flaxformer_lab.report.page import as_page
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.tasks import PrimaryMetric
from tests.chromium import headless_chromium

SEEDS = (0, 1, 2, 3, 4)
RNG = np.random.default_rng(0)
NOISE = {key: 0.01 * RNG.normal(size=5) for key in "abcdef"}
BOUND = {"metric": "r2", "value": 0.25, "theorem": "made up", "assumes": ""}
HOSTILE = "<script>alert(1)</script>"
BREAKING = "\"'><img src=x onerror=alert(2)>&amp;"


# ------------------------------------------------------------------------------------------------ made-up ablations


@dataclass
class Made:
    """An ablation's summary, the verdicts, and the page that they make."""

    summary: object
    decisions: tuple
    page: str


def claims(task="near", other="ffn_off"):
    """Four claims, one of each verdict."""

    def claim(name, verdict, threshold, more, less):
        comparison = Comparison("so", f"is {name} so?", more, less, threshold)
        because = f"because of {name}"
        conclusions = (Conclusion(verdict, because, {"so": "yes"}), Conclusion("refuted", because))
        return Claim(name, f"The statement of {name}.", (comparison,), conclusions, source="a book")

    base, off = Quantity(task), Quantity(task, other)
    return (
        claim("C91", "supported", 0.2, base, off),
        claim("C92", "refuted", 0.2, off, base),
        claim("C93", "supported only when", 0.05, Quantity(task, BASELINE, "cross_feature_energy"), None),
        claim("C94", "supported", 0.2, Quantity("nowhere"), None),
    )


CLAIMS = claims()


@pytest.fixture
def made(grid, store, result, judged_by):
    """The function that makes a page: scores by (task, variant), {"changes": ...} to the ablation, and the rest."""

    def make(scores, changes=None, failed=(), decided=CLAIMS, bounds=None, edit=None, metric=None):
        if metric is not None:
            judged_by(metric)
        built = grid({"seeds": SEEDS, "learning_rates": (0.01,), **(changes or {})})
        store.claim(built)
        for number, ((task, variant), values) in enumerate(scores.items(), start=1):
            cell = built.cell(task, variant)
            measures = {"cross_feature_energy": 0.1 * number, "cross_token_energy": 0.05 * number}
            found = result(cell, values, bound=(bounds or {}).get((task, variant)))
            for k, replica in enumerate(found["replicas"]):
                replica["measures"] = {name: value * (1 + 0.01 * k) for name, value in measures.items()}
            found["parameters"], found["forward_flops"] = 1000 * number, 20_000 * number
            store.finish(cell, edit(found) if edit else found)
        for (task, variant), error in dict(failed).items():
            store.fail(built.cell(task, variant), error, "")
        summary = summarise(built, store)
        decisions = decide(decided, summary)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return Made(summary, decisions, as_page(summary, decisions))

    return make


FINISHED = {
    ("near", BASELINE): 0.9 + NOISE["a"],
    ("near", "ffn_off"): 0.2 + NOISE["b"],
    ("near", "one head"): 0.9 + NOISE["c"],
    ("far", BASELINE): 0.6 + NOISE["d"],
    ("far", "ffn_off"): 0.7 + NOISE["e"],
    ("far", "one head"): -0.4 + NOISE["f"],
}
BOUNDS = {("near", "ffn_off"): BOUND, ("far", "ffn_off"): BOUND}
FAR = {"recipe": "delay.py", "overrides": {"task": {"tokens": 6}}}
THRESHOLD = {"tasks": {"near": {"recipe": "delay.py", "threshold": 0.5}, "far": FAR}}


MSE = PrimaryMetric("mse", "MSE", higher_is_better=False, limits=(0.0, None), digits=4)
AUC = PrimaryMetric("auc", "AUC", higher_is_better=True, limits=(0.0, 1.0), digits=2)
LOSSES = {key: 2.0 - values for key, values in FINISHED.items()}


def hostile_names():
    """An ablation whose task and variants have names that try to be markup."""
    return {
        "tasks": {BREAKING: {"recipe": "delay.py"}, "</title></style><b>": FAR},
        "variants": {HOSTILE: "ffn_off", BREAKING: "linear_ffn", "the same": {}},
    }


STATES = {
    "finished": {"scores": FINISHED, "bounds": BOUNDS},
    "half way": {"scores": dict(list(FINISHED.items())[:2]), "failed": {("far", "ffn_off"): "ValueError: too wide"}},
    "nothing": {"scores": {}},
    "nothing, no claims": {"scores": {}, "decided": ()},
    "no baseline": {"scores": {("near", "ffn_off"): 0.2 + NOISE["a"], ("near", "one head"): 0.8}},
    "one seed": {"scores": {key: values[:1] for key, values in FINISHED.items()}, "changes": {"seeds": (3,)}},
    "some diverged": {
        "scores": FINISHED | {("near", "one head"): [0.9, np.nan, 0.8, 0.9, np.nan], ("far", "one head"): np.nan}
    },
    "all diverged": {"scores": {key: np.nan for key in FINISHED}},
    "baseline diverged": {"scores": FINISHED | {("near", BASELINE): np.nan}},
    "far below zero": {"scores": FINISHED | {("near", "one head"): -40 + NOISE["a"]}},
    "less is better": {"scores": LOSSES, "metric": MSE},
    "no measures": {
        "scores": FINISHED,
        "edit": lambda found: found | {"replicas": [each | {"measures": {}} for each in found["replicas"]]},
        "decided": CLAIMS[:2],
    },
    "all alike": {"scores": {key: 0.5 for key in FINISHED}},
    "another baseline": {"scores": FINISHED, "changes": {"baseline": "one head"}},
    "hostile": {
        "scores": {
            (BREAKING, BASELINE): 0.9 + NOISE["a"],
            (BREAKING, HOSTILE): 0.2 + NOISE["b"],
            (BREAKING, BREAKING): 0.3 + NOISE["c"],
        },
        "changes": hostile_names(),
        "failed": {("</title></style><b>", HOSTILE): f"ValueError: {HOSTILE}{BREAKING}"},
        "decided": claims(BREAKING, HOSTILE),
    },
    "long names": {
        "scores": {("n" * 60, BASELINE): 0.9, ("n" * 60, "v" * 80): 0.2, ("n" * 60, "many short words " * 6): 0.3},
        "changes": {
            "tasks": {"n" * 60: {"recipe": "delay.py"}},
            "variants": {"v" * 80: "ffn_off", "many short words " * 6: "linear_ffn"},
        },
        "failed": {},
        "decided": (),
    },
}


PAGES = {}


@pytest.fixture
def page_of(made):
    """The function that gives the page of one of the states; each is made once."""

    def find(name):
        if name not in PAGES:
            PAGES[name] = made(**STATES[name])
        return PAGES[name]

    return find


@pytest.fixture(params=STATES)
def state(request, page_of):
    """One ablation after the other, whole and half way."""
    return page_of(request.param)


@pytest.fixture
def finished(page_of):
    """The ablation that has finished."""
    return page_of("finished")


# ------------------------------------------------------------------------------------------------ reading a page


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict = field(default_factory=dict)
    children: list = field(default_factory=list)

    def all(self, tag=None, **attributes):
        """Every element below with this tag and these attributes."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        for child in self.children:
            if isinstance(child, Node):
                if tag in (None, child.tag) and all(child.attributes.get(k) == v for k, v in wanted.items()):
                    yield child
                yield from child.all(tag, **attributes)

    def one(self, tag=None, **attributes):
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self):
        """What a reader sees, with single spaces."""
        return " ".join(self.letters.split())

    @property
    def letters(self):
        return "".join(child.letters if isinstance(child, Node) else child for child in self.children)


class Reader(HTMLParser):
    """Reads a page into Nodes, and insists that every element is closed."""

    VOID = {"br", "link", "meta", "wbr"}

    def __init__(self, page):
        super().__init__()
        self.stack = [Node("document")]
        self.feed(page)
        self.close()
        assert len(self.stack) == 1, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self.stack[-1].children.append(node)
        if tag not in self.VOID:
            self.stack.append(node)

    def handle_endtag(self, tag):
        assert self.stack.pop().tag == tag

    def handle_data(self, data):
        self.stack[-1].children.append(data)


def read(page):
    return Reader(page).stack[0]


def rows_of(table):
    """The rows of a table as {column: text}, by variant."""
    header, *rows = [[cell for cell in row.children if isinstance(cell, Node)] for row in table.all("tr")]
    names = [cell.text for cell in header]
    found = [dict(zip(names, (cell.text for cell in row), strict=True)) for row in rows]
    return {row["variant"]: row for row in found}


def plain(said):
    """With the minus signs of a keyboard."""
    return said.replace("−", "-")


# ------------------------------------------------------------------------------------------------ content


def test_a_task_s_table_holds_the_figures_of_the_summary(made):
    page = made(FINISHED, THRESHOLD, bounds=BOUNDS)
    rows = rows_of(read(page.page).one("div", aria_label="Results on near").one("table"))
    assert list(rows) == [BASELINE, "one head", "ffn_off"]  # the best first
    for variant, row in rows.items():
        score, difference = page.summary.score("near", variant), page.summary.difference("near", variant)
        assert plain(row["R²"]) == format_interval(score.interval)
        assert row["interquartile mean"] == f"{score.interquartile_mean:.3f}"
        assert row["parameters"] == f"{score.parameters:,}" and row["FLOPs"] == f"{score.forward_flops:,}"
        assert row["learning rate"] == "0.01" and row["steps to 0.5"] == format_steps_to_threshold(score)
        if variant == BASELINE:
            assert {row[name] for name in ("difference", "Holm p", "P(better)", "bound")} == {"–"}
        else:
            assert plain(row["difference"]) == format_interval(difference.interval, signed=True)
            assert row["Holm p"] == format_p_value(difference.corrected_p)
            assert row["P(better)"] == format_interval(difference.probability_of_improvement, 2)
            assert row["verdict"] == format_clarity(difference)
    assert rows["ffn_off"]["bound"] == "≤ 0.250 held" and rows["ffn_off"]["steps to 0.5"] == "0 of 5 seeds"


def test_the_p_values_are_the_corrected_ones(made):
    less = 0.9 + NOISE["a"] - np.array([0.3, 0.1, 0.2, 0.25, 0.02])
    page = made(FINISHED | {("near", "ffn_off"): less})
    difference = page.summary.difference("near", "ffn_off")
    assert difference.corrected_p == pytest.approx(2 * difference.p_value) and 0.02 < difference.corrected_p < 0.2
    rows = rows_of(read(page.page).one("div", aria_label="Results on near").one("table"))
    assert rows["ffn_off"]["Holm p"] == f"{difference.corrected_p:.3f}"


def test_a_broken_bound_is_called_so(finished):
    page = finished
    document = read(page.page)
    rows = rows_of(document.one("div", aria_label="Results on far").one("table"))
    assert rows["ffn_off"]["bound"] == "≤ 0.250 BROKEN"
    tiles = [tile.text for tile in document.one("ul", class_="tiles").all("li")]
    assert "1 of 2bounds of theory held" in tiles


def test_without_bounds_none_is_spoken_of(page_of):
    document = read(page_of("all alike").page)
    assert "bounds" not in document.one("ul", class_="tiles").text
    rows = rows_of(document.one("div", aria_label="Results on far").one("table"))
    assert {row["bound"] for row in rows.values()} == {"–"}


def test_the_overview_has_every_pair(made):
    scores = {key: values for key, values in FINISHED.items() if key[0] == "near" or key[1] == BASELINE}
    page = made(scores, failed={("far", "ffn_off"): "out of memory"})
    rows = rows_of(read(page.page).one("table", class_="overview"))
    assert list(rows) == [BASELINE, "ffn_off", "one head"]
    for task in ("near", "far"):
        assert rows[BASELINE][task] == format_mean(page.summary.score(task, BASELINE).interval)
    for variant in ("ffn_off", "one head"):
        difference = page.summary.difference("near", variant)
        assert plain(rows[variant]["near"]) == format_mean(difference.interval, signed=True)
    assert rows["ffn_off"]["far"] == "failed" and rows["one head"]["far"] == "…"


def test_the_overview_is_the_fuller_in_colour_the_greater_the_difference(finished):
    cells = [cell for cell in read(finished.page).one("table", class_="overview").all("td")]
    shares = {plain(cell.text): cell.attributes["style"] for cell in cells if "style" in cell.attributes}
    ways = {plain(cell.text): cell.attributes["class"] for cell in cells if "style" in cell.attributes}
    assert len(shares) == 4
    for said, style in shares.items():
        assert style == f"--share:{100 * min(abs(float(said)), 1):.0f}%"
        assert ways[said] == ("better" if float(said) > 0 else "worse")


def test_a_verdict_is_a_card_with_its_word_its_reason_and_its_figures(finished):
    page = finished
    document = read(page.page)
    cards = {card.one("span", class_="claim").text: card for card in document.all("article")}
    assert list(cards) == [decision.claim.name for decision in page.decisions] == ["C91", "C92", "C93", "C94"]
    assert {decision.verdict for decision in page.decisions} == {
        "supported",
        "refuted",
        "supported only when",
        "undecided",
    }
    for decision in page.decisions:
        card, (finding,) = cards[decision.claim.name], decision.findings
        assert card.one("span", class_="badge").text.endswith(f" {decision.verdict}")
        assert card.attributes["class"] == f"card {decision.verdict.replace(' ', '-')}"
        assert card.one("p", class_="source").text == "Source: a book"
        assert card.one("blockquote").text == decision.claim.statement
        assert card.one("p", class_="reason").text.lower() == decision.reason.lower()
        assert str(finding.comparison.more) in card.one("p", class_="compared").text
        reach = [plain(each.text) for each in card.all("p", class_="reach")]
        assert reach == [each for each in (format_errors(decision), *format_reach(decision)) if each]
        assert document.one("a", href=f"#{card.attributes['id']}").text == decision.claim.name
        if finding.interval is None:
            assert "not measured" in card.text and not list(card.all("svg"))
        else:
            assert f"{finding.answer}: {format_interval(finding.interval)}" in plain(card.text)
            assert format_interval(finding.interval) in plain(card.one("svg").attributes["aria-label"])
    lead = document.one("p", class_="lead").text
    assert lead.startswith("Supported: C91; refuted: C92; supported only when: C93; undecided: C94.")


@pytest.mark.parametrize(
    ("state", "said"), [("finished", "learning rate given: 0.01"), ("nothing", "learning rate given: 0.01")]
)
def test_the_header_says_how_rates_were_found(page_of, state, said):
    assert said in read(page_of(state).page).one("p", class_="setting").text


def test_the_header_counts_what_was_searched(made):
    page = made({("near", BASELINE): np.repeat((0.3, 0.9), 5)}, {"learning_rates": (0.01, 0.03)}, decided=())
    header = read(page.page).one("header")
    assert "best of 2 learning rates a cell, at an edge of its grid in 1 cell" in header.text
    assert [link.attributes["href"] for link in header.one("ul", class_="finding").all("a")] == ["#task-1"]
    assert "near: The baseline reaches 0.900" in header.one("ul", class_="finding").text


def test_a_page_of_some_tasks_shows_no_others(made):
    page = made({("far", BASELINE): np.full(5, 0.9)}, {"only": ["far"]}, decided=())
    seen = read(page.page)
    assert seen.one("p", class_="setting").text.startswith("1 task · ")
    assert list(rows_of(seen.one("table", class_="overview"))[BASELINE]) == ["variant", "far"]
    assert "near" not in seen.one("nav").text and [each.text for each in seen.one("main").all("h3")][:1] == ["far"]


def test_an_answer_is_drawn_on_its_side_of_the_threshold(finished):
    found = []
    for card in read(finished.page).all("article"):
        for svg in card.all("svg"):
            threshold = place_of(svg.one("g", class_="threshold"))[0]
            (mark,) = (group for group in svg.all("g") if group.attributes["class"].startswith("mark"))
            above = mark.attributes["class"] == "mark better"
            assert above == (place_of(mark)[0] > threshold) == ("yes:" in card.text)
            found.append(above)
    assert found == [True, False, True]


def place_of(group):
    """The pixels at which a mark, or a line's first point, is drawn."""
    (shape,) = (node for node in group.all() if node.tag in ("circle", "path"))
    numbers = shape.attributes["d"].split()[1:3] if shape.tag == "path" else (shape.attributes[k] for k in ("cx", "cy"))
    return [float(each) for each in numbers]


def test_charts_say_their_numbers_in_words(finished):
    page = finished
    labels = [plain(svg.attributes["aria-label"]) for svg in read(page.page).all("svg")]
    for score in page.summary.scores:
        last = score.curves[:, -1]
        started = [label for label in labels if label.startswith(f"Validation R² of {score.variant} over 4 steps")]
        (curve,) = (label for label in started if f"ends at a median of {np.median(last):.3f}" in label.split(";")[0])
        assert f"seeds from {last.min():.3f} to {last.max():.3f}" in curve
        assert ("theory allows 0.250" in curve) == ((score.task, score.variant) in BOUNDS)
        said = f"{score.variant} {format_interval(score.interval)} at"
        assert sum(said in label for label in labels) == 4  # two of mixing, two of cost
        assert any(f"{said} {score.parameters:,}" in label for label in labels)
    for difference in page.summary.differences:
        said = f"{difference.variant} {format_interval(difference.interval, signed=True)}"
        assert sum(label.startswith("Paired difference in R²") and said in label for label in labels) == 1


def test_the_forest_draws_each_difference_where_it_is(finished):
    svg = read(finished.page).one("div", aria_label="Differences on near").one("svg")
    texts = {plain(text.text) for text in svg.all("text")}
    marks = [group for group in svg.all("g") if group.attributes["class"].startswith("mark")]
    lines = list(svg.one("g", class_="intervals").all("path"))
    assert len(marks) == len(lines) == 2
    zero, unit = pixels_of_axis(svg)
    for mark, line in zip(marks, lines, strict=True):
        name, _, words = plain(mark.one("title").text).partition(": ")
        difference = finished.summary.difference("near", name)
        interval = difference.interval
        assert words == f"{format_interval(interval, signed=True)}, Holm p {format_p_value(difference.corrected_p)}"
        assert {name, format_mean(interval, signed=True), format_ends(interval, signed=True)} < texts
        clear = difference.corrected_p < 0.05
        assert mark.attributes["class"] == f"mark {'worse' if clear else 'level'}" and clear == (name == "ffn_off")
        drawn = [float(x) for x in re.findall(r"[ML] ([\d.]+)", line.attributes["d"])]
        expected = [zero + unit * value for value in (interval.low, interval.high, interval.mean)]
        assert [*drawn, place_of(mark)[0]] == pytest.approx(expected, abs=0.1)


def pixels_of_axis(svg):
    """Where 0 is, and how many pixels 1 takes, by the labels of the ticks."""
    labels = [text for text in svg.all("text") if "text-anchor:middle" in text.attributes["style"]]
    ticks = {float(plain(each.text)): float(each.attributes["x"]) for each in labels[:-1]}  # the last names the axis
    (low, first), *_, (high, last) = sorted(ticks.items())
    unit = (last - first) / (high - low)
    return first - low * unit, unit


def test_a_metric_of_which_less_is_better(page_of):
    page = page_of("less is better")
    document = read(page.page)
    rows = rows_of(document.one("div", aria_label="Results on near").one("table"))
    score = page.summary.score("near", BASELINE)
    assert rows[BASELINE]["MSE (less is better)"] == format_interval(score.interval, 4)
    assert page.summary.difference("near", "ffn_off").interval.mean == pytest.approx(-0.7, abs=0.02)
    assert re.match(r"−0\.\d{4} \[", rows["ffn_off"]["difference"])
    cells = list(document.one("table", class_="overview").all("td"))
    assert [cell.attributes["class"] for cell in cells[2:4]] == ["worse", "better"]
    assert cells[5].attributes["style"] == "--share:100%"  # the greatest difference of a metric without a highest value
    labels = [svg.attributes["aria-label"] for svg in document.all("svg")]
    assert sum(label.startswith("MSE (less is better) against") for label in labels) == 8


def test_a_metric_of_the_tasks_own(made):
    """Its name, its digits and its range stand in the table, the figures, the overview and the sentences."""
    page = made({key: np.clip(values, 0, 1) for key, values in FINISHED.items()}, metric=AUC)
    document = read(page.page)
    rows = rows_of(document.one("div", aria_label="Results on near").one("table"))
    assert re.fullmatch(r"0\.\d\d \[0\.\d\d, 0\.\d\d\]", rows["ffn_off"]["AUC"])
    assert "The baseline reaches 0.90 [" in document.text and "] in AUC." in document.text
    cells = list(document.one("table", class_="overview").all("td"))
    assert cells[2].attributes["style"] == "--share:70%"
    labels = [svg.attributes["aria-label"] for svg in document.all("svg")]
    for words in ("Validation AUC of ffn_off", "Paired difference in AUC", "AUC against parameters"):
        assert any(words in label for label in labels)
    assert "R²" not in page.page and not re.search(r"\b(r2|accuracy|loss)\b", document.one("main").text)


def test_cells_that_failed_are_missing_or_mean_nothing_are_named(made):
    changes = {
        "variants": {"ffn_off": "ffn_off", "one head": {"model": {"attention": {"num_heads": 1}}}, "the same": {}}
    }
    scores = {key: values for key, values in FINISHED.items() if key[0] == "near"}
    page = made(scores, changes, failed={("far", "ffn_off"): "ValueError: too wide"})
    document = read(page.page)
    (section,) = (each for each in document.all("section") if each.attributes["aria-labelledby"] == "cells")
    assert "3 of 6 cells have finished." in section.text
    assert section.one("ul", class_="failures").text == "far / ffn_offValueError: too wide"
    missing = section.one("dl", class_="missing")
    assert [each.text for each in missing.all()] == ["far", "baseline, one head"]
    assert "near / the same: the same as baseline" in section.one("details").text
    tiles = [tile.text for tile in document.one("ul", class_="tiles").all("li")]
    assert tiles[:3] == ["3 of 6cells finished", "1cells failed", "2cells missing"]


def test_the_same_results_make_the_same_bytes(made, grid, store):
    first = made(FINISHED, bounds=BOUNDS)
    for path in store.path.glob("cells/*.json"):  # how long it took is not what it found
        tree = json.loads(path.read_text())
        path.write_text(json.dumps(tree | {"seconds": 99.0}))
    summary = summarise(store.read(), store)
    assert as_page(summary, decide(CLAIMS, summary)) == first.page
    other = made({**FINISHED, ("near", BASELINE): 0.91 + NOISE["a"]}, bounds=BOUNDS)
    assert other.page != first.page


# ------------------------------------------------------------------------------------------------ every state


def test_every_state_makes_a_sound_page(state):
    document = read(state.page)
    ids = [node.attributes["id"] for node in document.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    assert {link.attributes["href"].removeprefix("#") for link in document.all("a")} <= set(ids)
    assert {s.attributes["aria-labelledby"] for s in document.all("section")} <= set(ids)
    levels = [int(node.tag[1]) for node in document.all() if re.fullmatch("h[1-6]", node.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        document.one(landmark)


def test_every_figure_has_a_text_alternative(state):
    document = read(state.page)
    for svg in document.all("svg"):
        assert svg.attributes["role"] == "img" and len(svg.attributes["aria-label"]) > 10
        assert not any(word in svg.attributes["aria-label"] for word in ("nan", "None"))
    for figure in document.all("figure"):
        assert list(figure.all("svg"))


def test_nothing_that_is_not_a_number_is_shown_as_one(state):
    document = read(state.page)
    words = document.one("main").text.split()
    assert not {"nan", "+nan", "-nan", "None", "inf"} & {word.strip("[](),.:;") for word in words}
    for node in document.all():
        assert not any(value and re.search(r"\b(nan|inf)\b", value) for value in node.attributes.values()), node


def test_a_page_needs_nothing_from_outside(state):
    document = read(state.page)
    assert {node.tag for node in document.all()} & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "image",
        "use",
    } == set()
    assert "url(" not in state.page and "@import" not in state.page
    for node in document.all():
        assert not any(name.startswith("on") or name == "src" for name in node.attributes)
        assert node.attributes.get("href", "#").startswith(("#", "data:,"))
    (policy,) = (each for each in document.all("meta") if each.attributes.get("http-equiv"))
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_a_name_that_is_markup_stays_a_name(page_of):
    page = page_of("hostile")
    document = read(page.page)
    rows = rows_of(document.one("table", class_="overview"))
    assert {HOSTILE, BREAKING} < set(rows)
    assert [head.text for head in document.all("h3")].count(BREAKING) == 1
    assert any(f"{HOSTILE}{BREAKING}" in pre.text for pre in document.all("pre"))
    assert any(HOSTILE in svg.attributes["aria-label"] for svg in document.all("svg"))
    assert "<script" not in page.page and "<img" not in page.page and "<b>near" not in page.page


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("nothing", "No cell has finished yet."),
        ("half way", "2 of 6 cells have finished: what follows may change."),
        ("finished", "undecided: C94."),
    ],
)
def test_the_headline_says_how_far_it_came(page_of, state, said):
    assert read(page_of(state).page).one("p", class_="lead").text.endswith(said)


def test_without_a_baseline_nothing_is_compared(page_of):
    document = read(page_of("no baseline").page)
    assert "The baseline, baseline, has not finished here" in document.text
    assert "There is nothing to compare yet." in document.text
    rows = rows_of(document.one("table", class_="overview"))
    assert rows["one head"]["near"] == "–" and rows[BASELINE]["near"] == "…"
    cells = [cell.attributes.get("title", "") for cell in document.one("table", class_="overview").all("td")]
    assert any(title.startswith("the baseline has not finished, R² 0.800") for title in cells)


def test_a_run_that_is_not_finite_is_called_so_and_comes_last(page_of):
    document = read(page_of("some diverged").page)
    rows = rows_of(document.one("div", aria_label="Results on near").one("table"))
    assert list(rows) == [BASELINE, "ffn_off", "one head"]
    assert rows["one head"]["R²"] == rows["one head"]["difference"] == "not finite"
    labels = [svg.attributes["aria-label"] for svg in document.all("svg")]
    assert any("of one head" in label and "seeds from 0.738 to 0.838" in label for label in labels)
    assert any("of one head over 4 steps is not finite at the end" in label for label in labels)


def test_a_baseline_that_is_not_finite_is_called_so(page_of):
    document = read(page_of("baseline diverged").page)
    assert "The baseline is not finite in R²." in document.text
    assert "The baseline reaches 0.6" in document.text  # the other task's


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    with headless_chromium() as found:
        yield found


@pytest.fixture
def opened(browser, tmp_path):
    """The function that opens a page: `opened(html, width=390)`; it collects what the browser complains of."""
    contexts = []

    def call(html, *, width, scheme):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        view = context.new_page()
        complaints = []
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        view.on("request", lambda request: complaints.append(request.url) if request.url != address else None)
        file = tmp_path / "report.html"
        file.write_text(html, encoding="utf-8")
        address = file.as_uri()
        view.goto(address)
        return view, complaints

    yield call
    for context in contexts:
        context.close()


WIDTH = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
# Letters that are too small, or outside their chart.
LETTERS = """() => [...document.querySelectorAll('svg text')].flatMap(text => {
    const box = text.getBoundingClientRect(), around = text.ownerSVGElement.getBoundingClientRect();
    const size = parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a;
    const out = box.left < around.left - 3 || box.right > around.right + 3 ||
        box.top < around.top - 3 || box.bottom > around.bottom + 3;
    const turned = text.hasAttribute('transform');
    return (turned ? false : size < 8) || out ? [`${text.textContent} ${size} ${JSON.stringify(box)}`] : [];
})"""


@pytest.mark.integration
def test_a_browser_has_nothing_to_complain_about(state, opened):
    view, complaints = opened(state.page, width=1280, scheme="light")
    for width in (1280, 390):
        view.set_viewport_size({"width": width, "height": 900})
        scrolled, seen = view.evaluate(WIDTH)
        assert scrolled <= seen == width
        assert view.evaluate(LETTERS) == []
    assert complaints == []
    assert view.evaluate("document.querySelectorAll('script').length") == 0


@pytest.mark.integration
def test_the_debate_is_a_sound_page_too(opened):
    page = (Path(__file__).parents[2] / "docs" / "results" / "debate.html").read_text(encoding="utf-8")
    assert all(svg.attributes["aria-label"] for svg in read(page).all("svg"))
    view, complaints = opened(page, width=1280, scheme="dark")
    for width in (1280, 390):
        view.set_viewport_size({"width": width, "height": 900})
        assert view.evaluate(WIDTH)[0] <= width and view.evaluate(LETTERS) == []
    assert min(view.evaluate(CONTRASTS)) >= 4.5 and complaints == []


@pytest.mark.integration
def test_every_figure_has_a_name_for_those_who_do_not_see_it(finished, opened):
    view, _ = opened(finished.page, width=1280, scheme="light")
    names = [each.get_attribute("aria-label") for each in view.get_by_role("img").all()]
    assert len(names) == view.locator("svg").count() > 10 and all(names)


CONTRASTS = """() => {
    const parse = colour => colour.match(/[\\d.]+/g).slice(0, 4).map(Number);
    const light = colour => parse(colour).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const ground = node => { for (; node; node = node.parentElement) {
        const colour = getComputedStyle(node).backgroundColor;
        if (!colour.startsWith('color(') && (parse(colour)[3] ?? 1) > 0) return colour; } };
    const words = [...document.querySelectorAll('h1, h2, h3, h4, p, td, th, li, dt, dd, figcaption, .badge, svg text')];
    return words.filter(node => node.textContent.trim()).map(node => {
        const style = getComputedStyle(node);
        const [a, b] = [light(node.ownerSVGElement ? style.fill : style.color), light(ground(node))].sort();
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    });
}"""


@pytest.mark.integration
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_both_schemes(finished, opened, scheme):
    view, complaints = opened(finished.page, width=1280, scheme=scheme)
    contrasts = view.evaluate(CONTRASTS)
    assert len(contrasts) > 100 and min(contrasts) >= 4.5 and complaints == []
    red = re.search(r"\d+", view.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (int(red.group()) < 128) == (scheme == "dark")


@pytest.mark.integration
def test_everything_that_scrolls_can_be_reached_by_keyboard(finished, opened):
    view, _ = opened(finished.page, width=390, scheme="light")
    boxes = view.evaluate(
        """[...document.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1 &&
            ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).map(e => e.tabIndex)"""
    )
    assert boxes and set(boxes) == {0}
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert view.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


@pytest.mark.slow
def test_paper_is_light_and_nothing_is_cut_off(finished, opened):
    view, _ = opened(finished.page, width=720, scheme="dark")
    view.emulate_media(media="print")
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert view.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert view.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
