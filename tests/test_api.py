"""What the commands do, from Python."""

import csv
import json
import shutil
import sys
import types

import numpy as np
import pytest

import flaxformer_lab
from flaxformer_lab import ablate, ablate_ffn, load_config, load_run, train
from flaxformer_lab import command_line as commands
from flaxformer_lab.errors import AblationError, ConfigError

pytestmark = pytest.mark.integration

DIGITS = {
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4},
    "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"expansion": 1.0}},
    "optimizer": {"learning_rate": 0.01},
    "training": {"steps": 4, "batch_size": 16, "evaluate_every": 2, "evaluate_batch_size": 300, "steps_per_call": 2},
    "parallelism": {"strategy": "single"},
}
RECIPE = """
def get_config():
    return {"task": {"name": "product", "tokens": 1, "features": 2}, "model": {"width": 4, "depth": 0}}
"""


@pytest.fixture(scope="module")
def told():
    """What the callback of the run was told: (step, split, metrics)."""
    return []


@pytest.fixture(scope="module")
def run(decoded_once, tmp_path_factory, told):
    """A finished run; not to be written."""
    folder = tmp_path_factory.mktemp("api") / "run"
    options = {"loggers": ["csv"], "callbacks": [lambda *entry: told.append(entry)]}
    return train(load_config(DIGITS), folder, quiet=True, **options)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------- a run


def test_training_returns_the_run_in_the_folder(run):
    assert run.step == 4
    assert repr(run) == "Run(transformer for image_classification of lab_digits, step 4, 738 parameters)"
    assert all(len(repr(each)) < 200 for each in (run, run.model, run.experiment))
    assert flaxformer_lab.evaluate(run) == flaxformer_lab.evaluate(run.workdir, "test") == run.evaluate("test")


def test_the_history_is_what_the_run_wrote(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert run.history == lines
    final = {each["name"]: each["value"] for each in run.history if each["split"] == "test"}
    assert final == run.evaluate("test")


def test_a_callback_and_a_logger_get_what_the_run_wrote(run, told):
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    flat = [(step, split, name, value) for step, split, metrics in told for name, value in metrics.items()]
    assert flat == [(each["step"], each["split"], each["name"], each["value"]) for each in lines]
    assert {each[:2] for each in told} == {(step, split) for step in (2, 4) for split in ("train", "validation")} | {
        (4, "test")
    }
    rows = list(csv.reader((run.workdir / "metrics.csv").open()))[1:]
    assert [(int(step), split, name, float(value)) for step, split, name, value in rows] == flat
    assert not (run.workdir / "tensorboard").exists()


def test_a_finished_run_tells_a_callback_nothing_again(run, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "run")
    before, calls = (tmp_path / "run" / "metrics.csv").read_bytes(), []
    train(run.config, tmp_path / "run", quiet=True, loggers=["csv"], callbacks=[lambda *entry: calls.append(entry)])
    assert calls == [] and (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_the_history_is_a_table_where_pandas_is(run, monkeypatch):
    pandas = types.SimpleNamespace(DataFrame=lambda records, columns: (columns, [r["step"] for r in records]))
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    columns, steps = run.history
    assert columns == ["step", "split", "name", "value"] and set(steps) == {2, 4}


def test_intermediate_values_of_raw_examples(run, images):
    outputs, cache = run.run_with_cache(images)
    np.testing.assert_allclose(outputs, run.predict(images), rtol=1e-5, atol=1e-6)
    assert list(cache)[:3] == ["input", "blocks.0.input", "blocks.0.attention.input"] and list(cache)[-1] == "output"
    assert cache["blocks.0.attention.z"].shape == (3, 4, 2, 4)
    np.testing.assert_allclose(np.sum(cache["blocks.0.attention.weights"], axis=-1), 1, rtol=1e-5)
    _, some = run.run_with_cache(images, names=["*.weights"])
    assert list(some) == ["blocks.0.attention.weights"]


def test_hooks_on_raw_examples(run, images):
    shapes = {}

    def remember(x):
        shapes["ffn"] = np.asarray(x).shape

    outputs = run.run_with_hooks(images, {"blocks.0.ffn.hidden": remember})
    np.testing.assert_allclose(outputs, run.predict(images), rtol=1e-4, atol=1e-5)
    assert shapes == {"ffn": (3, 4, 8)}
    without = run.run_with_hooks(images, ablate_ffn(0))
    assert np.max(np.abs(without - outputs)) > 1e-3
    np.testing.assert_allclose(run.with_hooks(ablate_ffn(0)).predict(images), without, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="predict: "):
        run.run_with_hooks(images[:, :4], {})


def test_metrics_under_hooks_are_those_of_the_changed_model(run):
    """Where the head sees zeros, the largest bias is what every image is taken for."""
    bias = np.asarray(run.params["head"]["bias"])
    source = run.task.examples("test")
    labels = source.read(np.arange(source.number))["label"]
    blind = run.with_hooks({"output": lambda x: 0 * x})
    assert blind.evaluate("test")["accuracy"] == pytest.approx(np.mean(labels == np.argmax(bias)))
    assert run.with_hooks({}).evaluate("test") == run.evaluate("test")


def test_measures_of_a_run(run):
    values = flaxformer_lab.measure(run.workdir, ["symmetry"], examples=4)
    assert values == run.measure(["symmetry"], examples=4) and 0 < values["oddness"]
    assert run.with_hooks({"output": lambda x: 0 * x}).measure(["symmetry"], examples=4)["oddness"] == 0


# -------------------------------------------------------------------------------------------------- configs


def test_a_config_from_a_file_or_a_mapping(tmp_path):
    changes = {"training.steps": 7, "model.attention.num_kv_heads": None}
    (tmp_path / "recipe.py").write_text(f"def get_config():\n    return {DIGITS!r}\n")
    config = load_config(tmp_path / "recipe.py", changes, ablation="ffn_off")
    assert config == load_config(DIGITS, changes, ablation=["ffn_off"])
    overrides = ["--config.training.steps=7"]
    assert config == commands.load_config(str(tmp_path / "recipe.py"), overrides, ["ffn_off"])
    assert (config.training.steps, config.model.ffn.kind) == (7, "off")
    listed = load_config(DIGITS, {"training.init_only": ["body", "head"], "training.init_from": "x"})
    assert listed.training.init_only == ("body", "head")
    with pytest.raises(ConfigError, match=r"unknown key training\.step .*did you mean steps"):
        load_config(DIGITS, {"training.step": 7})


# ------------------------------------------------------------------------------------------------ ablations


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    """An ablation as a mapping, whose recipe is in the working folder."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    small = {"steps": 2, "batch_size": 8, "evaluate_every": 2, "steps_per_call": 2, "evaluate_batch_size": 64}
    task = {"recipe": "recipe.py", "overrides": {"training": small, "task.evaluation_examples": 64}}
    return {"tasks": {"small": task}, "learning_rates": [0.01], "seeds": [0, 1]}


def check_curves(report, calls, folder):
    """Each replica was logged once, with the scores of the report."""
    tests = {split.seed: metrics["r2"] for _, split, metrics in calls if split.name == "test"}
    (score,) = report.summary.scores
    assert [tests[0], tests[1]] == score.values.tolist() and len(calls) == 2 * 3
    assert {(split.task, split.variant, split.learning_rate) for _, split, _ in calls} == {("small", "baseline", 0.01)}
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    found = {int(row["seed"]): float(row["value"]) for row in rows if (row["split"], row["name"]) == ("test", "r2")}
    assert found == tests and len(rows) == sum(len(metrics) for _, _, metrics in calls)


@pytest.mark.slow
def test_an_ablation_from_a_mapping_or_a_file(ablation, tmp_path, capsys):
    calls = []
    logged = {"loggers": ["csv"], "callbacks": [lambda *entry: calls.append(entry)]}
    report = ablate(ablation, tmp_path / "one", quiet=True, **logged)
    check_curves(report, calls, tmp_path / "one")
    assert repr(report) == f"Report(1 of 1 cells; {tmp_path / 'one' / 'report.html'})"
    assert [score.variant for score in report.summary.scores] == ["baseline"]
    assert not capsys.readouterr().out
    (tmp_path / "deeper").mkdir()
    ablation["tasks"]["small"]["recipe"] = "../recipe.py"
    (tmp_path / "deeper" / "file.py").write_text(f"def get_config():\n    return {ablation!r}\n")
    calls.clear()
    rows = (tmp_path / "one" / "metrics.csv").read_text()
    again = ablate(tmp_path / "deeper" / "file.py", tmp_path / "one", quiet=True, **logged)
    assert calls == [] and (tmp_path / "one" / "metrics.csv").read_text() == rows
    scores = [[score.values.tolist() for score in each.summary.scores] for each in (report, again)]
    assert scores[0] == scores[1] and len(list((tmp_path / "one" / "cells").glob("*.json"))) == 1


def test_an_ablation_that_failed_says_so(ablation, tmp_path, monkeypatch):
    class TooLarge:
        def __init__(self, *_):
            raise MemoryError("too small")

    monkeypatch.setattr("flaxformer_lab.ablation.local.Population", TooLarge)
    with pytest.raises(AblationError, match=r"1 of 1 cells failed, the first small / baseline: .*too small"):
        ablate(ablation, tmp_path / "one", quiet=True)


def test_opening_a_folder_gives_the_run_of_training(run):
    opened = load_run(run.workdir)
    assert opened.workdir == run.workdir and opened.config == run.config
