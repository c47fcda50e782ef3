"""The attention kind of docs/extending.md, as it stands there, through every command."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab import registry
from flaxformer_lab.analysis import measures
from flaxformer_lab.config import parse_config
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks import make_task
from flaxformer_lab.tasks.controls import whole
from flaxformer_lab.training.loop import train

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "docs" / "extending.md").read_text()
EXAMPLE, MODEL, CONTROL = (block.split("```")[0] for block in TEXT.split("```python\n")[1:])
COMMANDS = re.findall(r"^python (?:-m )?([\w.]+?)(?:\.py)? (.*)$", TEXT, re.MULTILINE)
SMALL = {
    "task.sequence_length": 32,
    "model.width": 8,
    "model.depth": 1,
    "model.attention.num_heads": 2,
    "training.steps": 2,
    "training.batch_size": 4,
    "training.evaluate_every": 2,
    "training.evaluate_batch_size": 1024,
    "training.checkpoint_every": 2,
    "training.steps_per_call": 2,
    "optimizer.warmup_steps": 0,
    "parallelism.strategy": "single",
}
DELAY = """
def get_config():
    return {
        "task": {"name": "delay", "tokens": 4, "features": 4, "evaluation_examples": 32},
        "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"kind": "off"}},
        "training": {"steps": 2, "batch_size": 4, "evaluate_every": 2, "checkpoint_every": 2, "steps_per_call": 2,
                     "evaluate_batch_size": 32},
    }
"""
ABLATION = """
def get_config():
    return {
        "tasks": {"near": {"recipe": "delay.py"}},
        "variants": {"sigmoid": {"model": {"attention": {"kind": "sigmoid"}}}},
        "learning_rates": [0.01],
        "seeds": [0, 1],
    }
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the example, the recipe that the docs name, and an ablation."""
    (tmp_path / "my_parts.py").write_text(EXAMPLE)
    (tmp_path / "delay.py").write_text(DELAY)
    (tmp_path / "ablation.py").write_text(ABLATION)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_the_example_is_short():
    assert len(EXAMPLE.splitlines()) <= 40
    assert all(len(line) <= 120 for line in EXAMPLE.splitlines())


def test_the_table_has_every_property():
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in TEXT.splitlines() if line.startswith("| `")]
    listed = {(key.strip("`"), kind) for key, kinds in rows for kind in kinds.split(", ")}
    assert {(key, kind) for kind, keys in registry.PROPERTIES.items() for key in keys if kind != "control"} <= listed


def test_the_model_of_the_docs_learns_a_delay(own_parts, tmp_path):
    """y_t = x_{t-1} is what it can do, and no token further back is."""
    registry.import_text(str(tmp_path / "model.py"), MODEL)
    task = {"name": "delay", "tokens": 4, "features": 4, "evaluation_examples": 64}
    training = {"steps": 300, "steps_per_call": 100, "batch_size": 32, "evaluate_every": 300}
    tree = {"task": task, "model": {"name": "shift", "width": 8}, "training": training}
    config = parse_config(tree | {"optimizer": {"learning_rate": 0.03}, "parallelism": {"strategy": "single"}})
    train(config, tmp_path / "run", quiet=True)
    assert load_run(tmp_path / "run").evaluate("test")["r2"] > 0.99
    assert make_task(dataclasses.replace(config.task, distance=2)).bound(config.model).value == 0


@pytest.mark.usefixtures("decoded_once")
def test_the_control_of_the_docs_predicts_the_shares_of_the_classes(own_parts):
    scope: dict = {}
    exec(compile(CONTROL, "docs/extending.md", "exec"), scope)
    task = make_task(parse_config({"task": {"name": "tabular_classification", "dataset": "lab_wine"}}).task)
    fit = registry.lookup("control", "majority").build(task, 0, 1.0)
    targets = whole(task, "train")["targets"]
    shares = np.exp(fit.predict(np.zeros((2, 1))))
    np.testing.assert_allclose(shares, [np.bincount(targets) / len(targets)] * 2, rtol=1e-6)


def test_the_commands_of_the_docs_and_what_they_say_without_the_import(place, own_parts, command_texts, monkeypatch):
    # One measure that it has and the one that it lacks; the others are known from other models.
    monkeypatch.setattr(measures, "MEASURES", {name: measures.MEASURES[name] for name in ("mixing", "attention")})
    more = {
        "train": [f"--config.{key}={value}" for key, value in SMALL.items()],
        "flaxformer_lab.generate": ["--length=10"],
        "flaxformer_lab.measure": ["--examples=2", "--random_vectors=2"],
        "flaxformer_lab.ablate": ["--cpu_devices=1"],
    }
    assert [name.rpartition(".")[2] for name, _ in COMMANDS] == [
        "train", "evaluate", "generate", "measure", "ablate", "report"
    ]  # fmt: skip
    said = {}
    for name, line in COMMANDS:
        arguments = [argument.replace("'", "") for argument in re.findall(r"--[^ ]*'[^']*'|--[^ ]+", line)]
        own_parts()  # as in a new process
        code, said[name], errors = command_texts(name, *arguments, *more.get(name, []))
        errors = [line for line in errors.splitlines() if not line.startswith("preparing ")]  # data, for the first time
        assert (code, errors) == (0, []), (name, errors)

    config = json.loads((place / "runs" / "sigmoid" / "config.json").read_text())
    assert config["model"]["attention"]["kind"] == "sigmoid"
    assert len(said["flaxformer_lab.generate"].strip("\n")) == len("My fellow citizens, ") + 10
    left_out = "left out: attention: attention.kind=sigmoid has no weights over tokens"
    assert left_out in said["flaxformer_lab.measure"] and "cross_token_energy" in said["flaxformer_lab.measure"]
    rows = (place / "runs" / "ablation" / "results.csv").read_text()
    assert "near,sigmoid" in rows and "near,baseline" in rows

    own_parts()
    for name, folder in (
        ("evaluate", "sigmoid"),
        ("generate", "sigmoid"),
        ("measure", "sigmoid"),
        ("report", "ablation"),
    ):
        code, _, errors = command_texts(f"flaxformer_lab.{name}", f"--workdir=runs/{folder}")
        assert code == 4
        assert "model.attention.kind=sigmoid is not a choice" in errors and "pass --import=FILE" in errors
