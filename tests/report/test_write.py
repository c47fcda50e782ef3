"""results.csv and report.md: the figures of the store and of the summary, whole and half way, in the same bytes."""

import csv
import gzip
import io
import itertools
import re

import numpy as np
import pytest

from flaxformer_lab.ablation.grid import BASELINE
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.errors import RunError
from flaxformer_lab.report.claims import decide_all
from flaxformer_lab.report.formatting import (
    format_clarity,
    format_interval,
    format_p_value,
    format_share,
    format_steps_to_threshold,
)
from flaxformer_lab.report.results import COLUMNS, as_csv, restore
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.report.write import as_markdown, table, write_report

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


def test_each_replica_is_a_row_with_its_figures(filled):
    made, store = filled()
    rows = read_csv(as_csv(made, store, summarise(made, store)))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 4 * 4
    stored = {(c.task, c.variant): store.result(c) for c in made.cells if store.result(c)}
    for row in rows:
        result = stored[row["task"], row["variant"]]
        (each,) = (
            each
            for each in result["replicas"]
            if (str(each["seed"]), repr(each["learning_rate"])) == (row["seed"], row["learning_rate"])
        )
        assert row["metric"] == "r2" and (row["updates"], row["parameters"], row["forward_flops"]) == (
            "4",
            "100",
            "200",
        )
        for split, value in (("validation", each["validation"]["r2"][-1]), ("test", each["test"]["r2"])):
            assert row[split] == "" if value is None else float(row[split]) == value
        assert (row["diverged"] == "true") == (each["test"]["r2"] is None)
    assert sum(row["diverged"] == "true" for row in rows) == 1


@pytest.mark.parametrize("kind", ["folder", "file", "gzip"])
def test_a_report_is_made_again_from_its_csv_byte_for_byte(filled, claim, tmp_path, kind):
    """In an empty folder, without any training; with shared test examples, a bound, and a run that diverged."""
    made, store = filled(changes={"claims": (claim,), "question": "Does it matter?"})
    cell = made.cell("near", BASELINE)
    more = {
        "test_examples": [{"learning_rate": 0.03, "totals": [1.0, 0.1 + 0.2], "weights": [2.0, 2.0]}],
        "bound": {"metric": "r2", "value": 0.9, "reason": "a theorem", "assumes": ""},
        "provenance": {"command": "python -m this", "versions": "jax 1", "device": "2 x cpu", "commit": "abc"},
    }
    store.finish(cell, store.result(cell) | more)
    first = contents(write_report(made, store))
    path = store.path
    if kind == "file":
        path = store.path / "results.csv"
    elif kind == "gzip":
        path = tmp_path / "book"
        path.mkdir()
        (path / "results.csv.gz").write_bytes(gzip.compress(first["results.csv"]))
    other = Store(tmp_path / "other")
    other.claim(made)
    restore(path, made, other)
    assert contents(write_report(made, other)) == first
    assert other.result(cell) == store.result(cell) | {"seconds": 0.0}
    for name, text in more["provenance"].items():
        assert f"{name.capitalize()}: {text}" in first["report.md"].decode()
    assert first["report.md"].startswith(b"# Does it matter?\n\n")
    assert b"<h1>Does it matter?</h1>" in first["report.html"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace('""key"":""', '""key"":""0'), "as another config trained it"),
        (lambda text: text.replace("details", "other"), "damaged or of another version"),
        (lambda text: text.replace('""steps"":[2,4]', '""steps"":[2]'), "is no result"),
        (lambda text: text.partition("\n")[0], "holds no cell of this ablation"),
        (lambda text: "\x00", "damaged or of another version|holds no cell"),
    ],
)
def test_a_book_that_does_not_fit_is_refused(filled, tmp_path, spoil, message):
    made, store = filled()
    text = as_csv(made, store, summarise(made, store))
    assert spoil(text) != text
    (tmp_path / "results.csv").write_text(spoil(text))
    other = Store(tmp_path / "other")
    other.claim(made)
    with pytest.raises(RunError, match=message):
        restore(tmp_path, made, other)


def test_a_book_does_not_replace_other_results(filled, grid, result, tmp_path):
    made, store = filled()
    write_report(made, store)
    other = Store(tmp_path / "other")
    other.claim(made)
    other.finish(made.cells[0], result(made.cells[0], 0.123))
    with pytest.raises(RunError, match="holds another result of near / baseline"):
        restore(store.path, made, other)
    with pytest.raises(RunError, match=r"is no results\.csv"):
        restore(tmp_path / "nowhere", made, other)


def test_each_verdict_is_linked_to_its_tables(filled, claim):
    made, store = filled(changes={"claims": (claim,)})
    summary = summarise(made, store)
    said = as_markdown(summary, decide_all(summary))
    assert said.index('<a id="table-1"></a>\n\n## near') < said.index('<a id="table-2"></a>\n\n## far')
    (row,) = (line for line in said.splitlines() if line.startswith("| C4 |"))
    assert row.endswith("| [near](#table-1) |")


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
        assert row[1:6] == [
            format_interval(score.interval),
            format_interval(difference.interval, signed=True),
            format_p_value(difference.corrected_p),
            format_clarity(difference),
            format_interval(difference.probability_of_improvement, 2),
        ]
        expected = ["100", "200", "0.01 (lowest tried)", format_share(score), format_steps_to_threshold(score)]
        assert row[-5:] == expected
    assert [format_steps_to_threshold(summary.score("near", row[0])) for row in body] == ["4", "0 of 2 seeds", "4"]


def test_markdown_names_what_failed_and_what_is_missing(filled):
    made, store = filled(failed={("far", "ffn_off"): "ValueError: too wide"})
    said = as_markdown(summarise(made, store), ())
    assert said.startswith("# Ablation report\n\n4 of 6 cells have finished: what follows may change.\n")
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
    rows = [row for row in read_csv(files["results.csv"]) if row["chosen"] == "true"]
    for (task, variant), group in itertools.groupby(rows, key=lambda row: (row["task"], row["variant"])):
        mean = np.mean([float(row["test"] or "nan") for row in group])
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


def test_two_tasks_that_are_the_same_are_restored_both(grid, store, result, tmp_path):
    """Cells with one config have one key, and so one result, which names one of the tasks."""
    same = {"recipe": "delay.py"}
    made = grid({"tasks": {"near": same, "twin": same}})
    store.claim(made)
    for number, cell in enumerate(made.cells):
        store.finish(cell, result(cell, 0.1 * (1 + number % 3)))
    write_report(made, store)
    other = Store(tmp_path / "other")
    other.claim(made)
    restore(store.path, made, other)
    assert all(other.result(cell) for cell in made.cells)
