"""The real commands, as processes and as calls in this one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flaxformer_lab.run import load_run

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[1]

SMALL = {
    "task.patch_size": 4,
    "model.width": 8,
    "model.depth": 0,
    "training.steps": 12,
    "training.batch_size": 16,
    "training.evaluate_every": 4,
    "training.checkpoint_every": 4,
    "training.steps_per_call": 2,
    "optimizer.warmup_steps": 2,
    "optimizer.name": "sgd",
    "parallelism.strategy": "single",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the recipes, away from the repository."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    return folder


def start(place, *arguments):
    """Starts a command in `place`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would hand down a deaf ear
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=place, env=environment, **pipes)


def flags(**changes):
    return [f"--config.{key}={value}" for key, value in (SMALL | changes).items()]


def test_a_run_stops_resumes_and_is_evaluated(place, run_command, monkeypatch):
    """It is evaluated by a process of its own."""
    monkeypatch.chdir(place)
    recipe = ["--config=configs/digits.py", "--ablation=single_head", *flags()]
    folder = place / "runs" / "digits-single_head"  # the default, named after recipe and ablation

    code, out, err = run_command("train", *recipe, "--stop_at=8")
    assert code == 0, err
    assert any("step 8 | validation " in line for line in out) and not any("| test " in line for line in out)
    assert out[-1] == f"the run is in {folder}"
    loaded = load_run(folder)
    assert loaded.step == 8
    assert (loaded.config.model.attention.num_heads, loaded.config.model.width, loaded.config.task.shift) == (1, 8, 1)

    code, out, err = run_command("train", *recipe)
    assert code == 0, err
    assert "resumed from the checkpoint of step 8" in out
    shown = [line for line in out if line.startswith("step 12 | test ")]
    assert len(shown) == 1 and load_run(folder).step == 12

    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    test = {entry["name"]: entry["value"] for entry in entries if entry["split"] == "test"}
    assert shown[0] == f"step 12 | test accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f}"
    process = start(place, "-m", "flaxformer_lab.evaluate", f"--workdir={folder}")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == {"step": 12, "split": "test", **test}


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(place, tmp_path):
    arguments = [REPOSITORY / "train.py", f"--workdir={tmp_path / 'run'}", *flags(**{"training.steps": 1_000_000})]
    process = start(place, *arguments)
    for line in process.stdout:
        if line.startswith("step 8 | validation"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    saving, ended = err.splitlines()
    assert saving == "saving after the updates in progress; Ctrl-C again leaves at once"
    step = load_run(tmp_path / "run").step
    assert ended == f"error: asked to end by SIGINT; step {step} is saved, and the same command goes on from there"
    assert step >= 8


@pytest.mark.parametrize(
    ("command", "length"),
    [
        ("train.py --help | head -2", 2),
        pytest.param("-m flaxformer_lab.ablate --help | head -1", 1, marks=pytest.mark.slow),
    ],
)
def test_who_reads_only_the_first_lines_ends_the_command_quietly(command, length):
    shell = f"set -o pipefail; {sys.executable} {command}"
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 300}
    ended = subprocess.run(["bash", "-c", shell], **options)
    assert (ended.returncode, ended.stderr, len(ended.stdout.splitlines())) == (0, "", length)


@pytest.mark.slow
def test_a_terminal_of_ascii_shows_the_rest_as_escapes(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config():\n    return {'task': {'dataset': 'größe'}}", encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, REPOSITORY / "train.py", f"--config={recipe}"]
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 300, "cwd": tmp_path}
    ended = subprocess.run([*command, "--print_config"], **options)
    assert ended.returncode == 0 and json.loads(ended.stdout)["task"]["dataset"] == "größe"
    ended = subprocess.run(command, **options)
    assert ended.returncode == 3 and ended.stderr.startswith("error: task.dataset='gr\\xf6\\xdfe' is not a TFDS name")
