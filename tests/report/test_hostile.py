"""Files that somebody else wrote or that rot has changed: an error with a name, or nothing; never a traceback."""

import copy
import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flaxformer_lab.ablation.grid import parse_ablation
from flaxformer_lab.command_line import _fail
from flaxformer_lab.config import Config, as_dict, parse_config
from flaxformer_lab.errors import ConfigError, LabError
from flaxformer_lab.report.write import write_report
from flaxformer_lab.run import load_run
from flaxformer_lab.training.logging import MetricsLog

NUMBERS = st.integers() | st.floats() | st.sampled_from([2**31, -(2**63), 10**40, 1e308, float("nan"), float("inf")])
TEXTS = st.text(max_size=20) | st.sampled_from(["../../etc/passwd", "<script>", "\x1b[2J", "\x00", "=1+1", "a\nb|c"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MANY = settings(max_examples=150, deadline=None, derandomize=True)


def places(tree, path=()):
    """The way to every value of nested dictionaries and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def with_change(tree, path, value, remove):
    """A copy in which one value is another, or is missing."""
    changed = copy.deepcopy(tree)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


PLAIN = json.loads(json.dumps(as_dict(Config())))


@MANY
@given(data=st.data(), value=VALUES, remove=st.booleans())
def test_any_value_anywhere_is_a_config_or_an_error(data, value, remove):
    path = data.draw(st.sampled_from(list(places(PLAIN))))
    try:
        parse_config(with_change(PLAIN, path, value, remove))
    except ConfigError as error:
        assert str(error)


@MANY
@given(value=st.dictionaries(TEXTS | st.sampled_from(["tasks", "variants", "seeds", "claims"]), VALUES, max_size=4))
def test_any_mapping_is_an_ablation_or_an_error(value):
    try:
        parse_ablation(value)
    except ConfigError as error:
        assert str(error)


HOSTILE_FILES = {
    "nothing": b"",
    "no text": bytes(range(256)),
    "deep": b"[" * 200_000,
    "deep in a key": b'{"model": ' * 50_000,
    "a huge number": b'{"seed": 1' + b"0" * 10_000 + b"}",
    "not a number": b'{"optimizer": {"learning_rate": NaN}}',
    "a list": b"[1, 2]",
    "a pickle": pickle.dumps({"seed": 0}),
    "a way out": b'{"task": {"name": "image_classification", "dataset": "../../../etc/passwd"}, "workdir": "/"}',
    "so wide": b'{"model": {"width": 1000000000000000}}',
    "so deep": b'{"model": {"depth": 1000000000}}',
}


@pytest.mark.parametrize("content", HOSTILE_FILES.values(), ids=HOSTILE_FILES)
def test_a_hostile_config_file_is_an_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "metadata.json").write_bytes(b"{}")
    with pytest.raises(LabError, match=r"config\.json|unknown|does not exist|no checkpoint"):
        load_run(tmp_path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(content=st.binary(max_size=200), entry=VALUES)
def test_what_is_no_line_of_metrics_is_dropped(tmp_path_factory, content, entry):
    """And what is one stays, byte for byte."""
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    ours = b'{"step": 1, "split": "train", "name": "loss", "value": 0.5}\n'
    path.write_bytes(ours + content + b"\n" + json.dumps(entry).encode() + b"\n" + b"[" * 100_000 + b"\n")
    with MetricsLog(path, resumed_step=1):
        pass
    assert path.read_bytes().startswith(ours)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=VALUES, remove=st.booleans())
def test_a_result_with_any_other_value_is_reported_or_made_again(grid, store, result, data, value, remove):
    made = grid({"variants": {"ffn_off": "ffn_off"}, "tasks": {"near": {"recipe": "delay.py"}}})
    store.claim(made)
    for cell in made.cells:
        store.finish(cell, result(cell))
    path = store.path / "cells" / f"{made.cells[0].key}.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(with_change(whole, data.draw(st.sampled_from(list(places(whole)))), value, remove)))
    write_report(store.read(), store)
    assert not any("<script" in (store.path / f"report.{kind}").read_text() for kind in ("html", "md"))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=VALUES, remove=st.booleans())
def test_an_ablation_file_with_any_other_value_is_read_or_an_error(grid, store, data, value, remove):
    store.claim(grid())
    path = store.path / "ablation.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(with_change(whole, data.draw(st.sampled_from(list(places(whole)))), value, remove)))
    try:
        write_report(store.read(), store)
    except LabError as error:
        assert str(error)


def test_a_message_does_not_steer_the_terminal(capsys):
    with pytest.raises(SystemExit):
        _fail("model.name=\x1b[2J\x07 is no model\nbut \u00e9 is printed", 2)
    assert capsys.readouterr().err == "error: model.name=\\x1b[2J\\x07 is no model\nbut \u00e9 is printed\n"
