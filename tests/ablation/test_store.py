"""An ablation's folder."""

import json

import pytest

from flaxformer_lab.ablation.store import Store
from flaxformer_lab.errors import RunError


def test_what_was_claimed_can_be_read(grid, store, claim):
    made = grid({"claims": [claim], "decide": ["C4"]})
    store.claim(made)
    assert store.read() == made and [cell.key for cell in store.read().cells] == [cell.key for cell in made.cells]


def test_another_ablation_may_follow_in_the_folder_and_finds_its_cells(grid, store, result):
    store.claim(grid())
    cell = grid().cells[0]
    store.finish(cell, result(cell))
    wider = grid({"variants": {"ffn_off": "ffn_off", "single_head": "single_head"}})
    store.claim(wider)
    assert store.read() == wider and store.result(wider.cells[0]) is not None


def test_a_result_is_there_once_it_is_finished(grid, store, result):
    store.claim(grid())
    cell, other = grid().cells[:2]
    assert store.result(cell) is None
    store.finish(cell, result(cell))
    assert store.result(cell) == {"key": cell.key} | result(cell)
    assert store.result(other) is None


def test_a_failure_is_kept_until_the_cell_is_finished(grid, store, result):
    store.claim(grid())
    cell = grid().cells[0]
    store.fail(cell, "ValueError: no", "a traceback")
    assert store.failure(cell) == "ValueError: no" and store.result(cell) is None
    store.finish(cell, result(cell))
    assert store.failure(cell) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"key": "other", "replicas": []}', '{"replicas": []}'])
def test_a_damaged_result_counts_as_none(grid, store, result, content):
    store.claim(grid())
    cell = grid().cells[0]
    store.finish(cell, result(cell))
    (store.path / "cells" / f"{cell.key}.json").write_text(content)
    assert store.result(cell) is None


def test_a_cell_belongs_to_one_process_at_a_time_and_is_free_when_that_dies(grid, store, work_elsewhere):
    store.claim(grid())
    cell, other = grid().cells[:2]
    process = work_elsewhere(cell)
    with store.locked(cell) as mine, store.locked(other) as free:
        assert not mine and free
    process.kill()
    process.wait(60)
    with store.locked(cell) as mine:
        assert mine


def test_a_folder_of_something_else_is_refused(grid, store):
    store.path.mkdir()
    (store.path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds files but no ablation\.json"):
        store.claim(grid())
    assert [path.name for path in store.path.iterdir()] == ["notes.txt"]


def test_a_folder_of_hidden_files_may_be_claimed(grid, store):
    store.path.mkdir()
    (store.path / ".DS_Store").write_bytes(b"a Mac's")
    store.claim(grid())
    assert store.read() == grid()


def test_a_folder_with_cuts_of_a_pretrained_model_says_what_it_is(store):
    store.path.mkdir()
    (store.path / "learned.json").write_text("{}")
    with pytest.raises(RunError, match=r"has cuts of a pretrained model \(learned\.json\) and no ablation\.json"):
        store.read()


def test_a_file_in_the_way_is_refused(grid, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written|holds"):
        Store(tmp_path / "file" / "inside").claim(grid())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"config": 1, "cells": [], "dropped": []}',
        '{"config": {"tasks": {"a": {"recipe": "x"}}}, "cells": [1], "dropped": []}',
        '{"config": {"tasks": {"a": {"recipe": "x"}}}, "cells": [{"task": "a", "variant": "b", "config": {"sead": 1}}],'
        ' "dropped": []}',
        '{"config": {"tasks": {"a": {"recipe": "x"}}}, "cells": [], "dropped": [["a"]]}',
    ],
)
def test_a_damaged_ablation_is_a_clear_error(grid, store, content):
    store.claim(grid())
    (store.path / "ablation.json").write_text(content)
    with pytest.raises(RunError, match=r"ablation\.json is (missing or )?damaged"):
        store.read()


def test_a_folder_that_only_names_its_claims_says_how_to_go_on(grid, store):
    """As earlier versions wrote it, whose claims were code."""
    store.claim(grid())
    path = store.path / "ablation.json"
    tree = json.loads(path.read_text())
    del tree["config"]["decide"]
    path.write_text(json.dumps(tree))
    assert store.read() == grid()
    tree["config"]["claims"] = ["C4", "C1"]
    path.write_text(json.dumps(tree))
    with pytest.raises(RunError, match=r"only names its claims, C4, C1; give the same `ablate` command again"):
        store.read()


@pytest.mark.parametrize("table", ["validation", "test"])
def test_a_result_without_the_metric_that_its_task_is_judged_by_is_none(grid, store, result, table):
    store.claim(grid())
    cell = grid().cells[0]
    without = result(cell)
    for replica in without["replicas"]:
        del replica[table][cell.primary_metric.name]
    store.finish(cell, without)
    assert store.result(cell) is None


def test_reading_executes_nothing(grid, store):
    made = grid()
    store.claim(made)
    text = json.loads((store.path / "ablation.json").read_text())
    assert set(text) == {"config", "cells", "dropped"}  # no path to any code
    with pytest.raises(RunError, match=r"no ablation\.json"):
        Store(store.path / "elsewhere").read()


def test_a_folder_that_another_process_is_beginning_is_no_folder_of_something_else(grid, store):
    """Or one that a process left which was killed while it wrote the first file."""
    store.path.mkdir()
    (store.path / "ablation.json.123.partial").write_text("{")
    store.claim(grid())
    assert store.read().config == grid().config
