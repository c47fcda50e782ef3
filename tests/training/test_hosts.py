"""Two processes of two devices each, which train as one."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.evaluate import load_run
from flaxformer_lab.training import hosts
from flaxformer_lab.training.loop import train
from flaxformer_lab.training.mesh import Mesh

REPOSITORY = Path(__file__).parents[2]
CONFIG = {
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4, "shift": 1},
    "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}, "bias": False},
    "optimizer": {"learning_rate": 0.01, "warmup_steps": 2, "clip_norm": 1.0},
    "training": {
        "steps": 20,
        "batch_size": 16,
        "evaluate_every": 10,
        "evaluate_batch_size": 64,
        "checkpoint_every": 10,
        "steps_per_call": 5,
        "accumulate": 2,
    },
}


@pytest.fixture
def recipe(tmp_path):
    """The file of the recipe."""
    path = tmp_path / "recipe.py"
    path.write_text(f"def get_config():\n    return {CONFIG!r}\n")
    return path


@pytest.fixture
def pair(recipe):
    """The function that starts two processes on one folder; those that still live at the end are killed."""
    started = []

    def start(folder, *arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        line = [sys.executable, "train.py", f"--config={recipe}", f"--workdir={folder}", *arguments]
        line += [f"--coordinator_address=localhost:{port}", "--num_processes=2"]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        both = [
            subprocess.Popen([*line, f"--process_id={number}"], cwd=REPOSITORY, env=environment, **pipes)
            for number in range(2)
        ]
        started.extend(both)
        return both

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_train_like_one_device(pair, tmp_path, assert_close):
    """First replicated, then on a mesh, each process with half of the rows; only the first one writes and speaks."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    ways = (["--config.parallelism.strategy=pmap", "--stop_at=10"], ["--config.parallelism.mesh.fsdp=4"])
    for way in ways:
        both = pair(together, *way)
        outputs = [process.communicate(timeout=300) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        said = [[line for line in out.splitlines() if "loss" in line] for out, _ in outputs]
        assert said[0] and not said[1]
    assert "resumed from the checkpoint of step 10" in outputs[0][0]
    train(parse_config(CONFIG | {"parallelism": {"strategy": "single"}}), alone, quiet=True)
    assert_close(load_run(together).state, load_run(alone).state, atol=1e-5)
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (together, alone)
    )
    assert [line | {"value": 0} for line in ours] == [line | {"value": 0} for line in theirs]
    np.testing.assert_allclose([line["value"] for line in ours], [line["value"] for line in theirs], atol=1e-5)


@pytest.mark.slow
def test_when_one_process_dies_the_other_ends_with_an_error(pair, tmp_path):
    both = pair(tmp_path / "run", "--config.training.steps=100000", "--config.parallelism.strategy=pmap")
    for line in both[0].stdout:
        if line.startswith("step 40 | validation"):  # the first checkpoint is on disk
            break
    both[1].kill()
    start = time.monotonic()
    both[0].communicate(timeout=120)
    assert both[0].returncode not in (0, None) and time.monotonic() - start < 60
    both = pair(
        tmp_path / "run", "--config.training.steps=100000", "--config.parallelism.strategy=pmap", "--stop_at=60"
    )
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0] and "resumed from the checkpoint of" in outputs[0][0]
    assert load_run(tmp_path / "run").step == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2, None), r"--process_id is missing; give all of --coordinator_address, --num_processes"),
        ((None, None, None), r"could not join the others: .*--coordinator_address"),
    ],
)
def test_a_process_that_cannot_join_says_why(arguments, message, monkeypatch):
    def refuse(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(ConfigError, match=message):
        hosts.join(*arguments)


def test_one_process_is_all_of_them():
    assert hosts.is_primary() and hosts.any_of_all(True) and not hosts.any_of_all(False)
    assert hosts.sum_of_all(2**64 + 3) == 3


def test_each_process_reads_the_rows_of_its_own_devices(monkeypatch):
    """Four devices, data x tensor: of two processes with two devices each, both hold half of the rows."""
    mesh = Mesh(parse_config(CONFIG | {"parallelism": {"mesh": {"tensor": 2}}}).parallelism.mesh)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for number, rows in ((0, range(8)), (1, range(8, 16))):
        mine = jax.devices()[2 * number : 2 * number + 2]
        monkeypatch.setattr(
            jax.sharding.NamedSharding,
            "addressable_devices_indices_map",
            lambda self, shape, mine=mine: {d: i for d, i in self.devices_indices_map(shape).items() if d in mine},
        )
        assert list(mesh.mine(16)) == list(rows)
