"""results.csv and report.md: the figures of the store and of the summary, whole and half way, in the same bytes."""

import csv
import io
import itertools
import re

import numpy as np
import pytest

from flaxformer_lab.ablation.grid import BASELINE
from flaxformer_lab.errors import RunError
from flaxformer_lab.report.formatting import format_interval, format_p_value, format_steps_to_threshold
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.report.write import COLUMNS, as_csv, as_markdown, table, write_report

SCORES = {
    ("near", BASELINE): [0.5, 0.6, 0.8, 0.9],  # two seeds at each of two learning rates
    ("near", "ffn_off"): [0.3, 0.1, 0.25, 0.15],
    ("near", "one head"): [0.85, 0.88, np.nan, 0.2],
    ("far", BASELINE): [0.1 / 3, 0.2 / 3, 0.3, 0.4],
}


@pytest.fixture
def filled(grid, store, result):
    """The function that makes a grid, and a store that holds these scores."""

    def make(scores=SCORES, changes=None, failed=None):
        made = grid(changes)
        store.claim(made)
        for (task, variant), values in scores.items():
            cell = made.cell(task, variant)
            store.finish(cell, result(cell, values))
        for (task, variant), error in (failed or {}).items():
            store.fail(made.cell(task, variant), error, "")
        return made, store

    return make


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_every_stored_figure_comes_back_from_the_csv_exactly(filled):
    made, store = filled()
    rows = read_csv(as_csv(made, store, summarise(made, store)))
    assert tuple(rows[0]) == COLUMNS
    found = {tuple(row[name] for name in COLUMNS if name not in ("chosen", "value")): row["value"] for row in rows}
    assert len(found) == len(rows) == 4 * 4 * (2 * 2 + 2 + 2)
    for cell in made.cells:
        for each in (store.result(cell) or {"replicas": []})["replicas"]:
            head = (cell.task, cell.variant, str(each["seed"]), repr(each["learning_rate"]))
            for metric, values in each["validation"].items():
                for step, value in zip((2, 4), values, strict=True):
                    assert_same(found.pop((*head, "validation", str(step), metric)), value)
            for split in ("test", "measures"):
                for metric, value in each[split].items():
                    assert_same(found.pop((*head, split.removesuffix("s"), "4", metric)), value)
    assert found == {}


def assert_same(said, value):
    assert said == "" if value is None else float(said) == value


def test_the_csv_says_which_learning_rate_was_chosen(filled):
    made, store = filled()
    rows = read_csv(as_csv(made, store, summarise(made, store)))
    chosen = {(row["task"], row["variant"], row["learning_rate"]) for row in rows if row["chosen"] == "true"}
    assert chosen == {
        ("near", BASELINE, "0.03"),
        ("near", "ffn_off", "0.01"),  # of equals the smaller one
        ("near", "one head", "0.01"),  # the other one diverged
        ("far", BASELINE, "0.03"),
    }
    assert {row["chosen"] for row in rows} == {"true", "false"}


def test_names_survive_the_csv(filled):
    name = 'a "quoted", <b>bold</b>, name'
    made, store = filled({("near", name): 0.5}, {"variants": {name: "ffn_off"}})
    assert {row["variant"] for row in read_csv(as_csv(made, store, summarise(made, store)))} == {name}


def test_markdown_holds_the_figures_of_the_summary(filled):
    made, store = filled(
        changes={"tasks": {"near": {"recipe": "delay.py", "threshold": 0.7}}}, scores=dict(list(SCORES.items())[:3])
    )
    summary = summarise(made, store)
    rows = [line.strip("| ").split(" | ") for line in as_markdown(summary, ()).splitlines() if line.startswith("|")]
    header, _, *body = rows
    assert header[1] == "r2 [95% interval]" and [row[0] for row in body] == [BASELINE, "ffn_off", "one head"]
    for row in body[1:]:
        score, difference = summary.score("near", row[0]), summary.difference("near", row[0])
        assert row[1:5] == [
            format_interval(score.interval),
            format_interval(difference.interval, signed=True),
            format_p_value(difference.corrected_p),
            f"{difference.probability_of_improvement:.2f}",
        ]
        assert row[-4:] == ["100", "200", "0.01 (lowest tried)", format_steps_to_threshold(score)]
    assert [format_steps_to_threshold(summary.score("near", row[0])) for row in body] == ["4", "0 of 2 seeds", "4"]


def test_markdown_names_what_failed_and_what_is_missing(filled):
    made, store = filled(failed={("far", "ffn_off"): "ValueError: too wide"})
    said = as_markdown(summarise(made, store), ())
    assert said.startswith("# Ablation: 4 of 6 cells\n")
    assert "Failed: far / ffn_off: ValueError: too wide" in said
    assert said.endswith("Not finished: far / one head.\n")


def test_a_cell_of_a_table_cannot_leave_it():
    assert table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |"


@pytest.mark.parametrize("scores", [{}, {("near", "ffn_off"): 0.5}, {("near", BASELINE): np.nan}, SCORES])
def test_all_files_are_written_at_any_time_and_always_in_the_same_bytes(filled, claim, scores):
    made, store = filled(scores, {"claims": (claim,)})
    first, second = (contents(write_report(made, store)) for _ in range(2))
    assert list(first) == ["results.csv", "report.md", "report.html"] and first == second
    again = contents(write_report(store.read(), store))
    assert first == again
    assert b"C4" in first["report.md"] and b"C4" in first["report.html"]
    assert not list(store.path.glob("*.partial"))


def contents(report):
    return {path.name: path.read_bytes() for path in report.files}


def test_the_three_files_agree(filled):
    made, store = filled()
    files = {name: text.decode() for name, text in contents(write_report(made, store)).items()}
    rows = [
        r
        for r in read_csv(files["results.csv"])
        if r["split"] == "test" and r["metric"] == "r2" and r["chosen"] == "true"
    ]
    for (task, variant), group in itertools.groupby(rows, key=lambda row: (row["task"], row["variant"])):
        mean = np.mean([float(row["value"]) for row in group])
        assert f"{mean:.3f}" in files["report.md"] and f"{mean:.3f}" in files["report.html"], (task, variant)


def test_a_folder_that_cannot_be_written_is_an_error_with_a_way_out(filled):
    made, store = filled()
    (store.path / "report.html").mkdir()
    with pytest.raises(RunError, match=r"cannot be written: .*; make room for it"):
        write_report(made, store)


def test_a_page_for_the_road_is_small(filled):
    """A report can be sent by mail."""
    made, store = filled()
    page = contents(write_report(made, store))["report.html"].decode()
    assert len(page) < 100_000 and not re.search(r"https?://", page)
