"""Two processes of two devices each, which train as one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError, Terminated
from flaxformer_lab.run import load_run
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

    def start(folder, *arguments, script="train.py"):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        line = [sys.executable, "tests/accelerator.py", str(script)]
        line += [f"--config={recipe}", f"--workdir={folder}", *arguments]
        line += [f"--coordinator_address=localhost:{port}", "--num_processes=2"]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(REPOSITORY)}
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


# The command, and then the rest of the run on a mesh: the processes, which take long to start, serve for both.
THEN_ON_A_MESH = """
import runpy
from flaxformer_lab.config import parse_config
from flaxformer_lab.training.loop import train

runpy.run_path("train.py", run_name="__main__")
train(parse_config({config}), {folder!r}, loggers=["csv"])
"""


@pytest.mark.integration
def test_two_processes_train_like_one_device(pair, tmp_path, assert_close):
    """First replicated, then on a mesh, each process with half of the rows; only the first one writes and speaks."""
    together, alone, script = tmp_path / "together", tmp_path / "alone", tmp_path / "script.py"
    on_mesh = CONFIG | {"parallelism": {"mesh": {"fsdp": 4}}}
    script.write_text(THEN_ON_A_MESH.format(config=on_mesh, folder=str(together)))
    both = pair(together, "--config.parallelism.strategy=pmap", "--stop_at=10", "--loggers=csv", script=script)
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    first, separator, second = outputs[0][0].partition("resumed from the checkpoint of step 10")
    assert separator and "loss" in first and "loss" in second and "loss" not in outputs[1][0]
    train(parse_config(CONFIG | {"parallelism": {"strategy": "single"}}), alone, quiet=True)
    assert_close(load_run(together).state, load_run(alone).state, atol=1e-5)
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (together, alone)
    )
    assert [line | {"value": 0} for line in ours] == [line | {"value": 0} for line in theirs]
    np.testing.assert_allclose([line["value"] for line in ours], [line["value"] for line in theirs], atol=1e-5)
    rows = [",".join(str(value) for value in line.values()) for line in ours]
    assert (together / "metrics.csv").read_text().splitlines() == ["step,split,name,value", *rows]


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


SRUN = """#!/bin/bash
printf '%s\\n' "$@" > srun.txt
[ -z "$SCANCEL" ] || kill -TERM $PPID
exit "$CODE"
"""


@pytest.fixture
def slurm_script(tmp_path):
    """The function that runs the script of docs/scaling.md where srun ends with `code`: (code, requeued jobs)."""
    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "job.sh").write_text(script)
    commands = {"srun": SRUN, "scontrol": '#!/bin/bash\n[ "$1" = requeue ] && echo "$2" >> requeued.txt\n'}
    for name, content in commands.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)

    def run(code, scancel=""):
        more = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "37", "SLURM_CPUS_PER_TASK": "64"}
        environment = os.environ | more | {"CODE": str(code), "SCANCEL": scancel}
        ended = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment)
        requeued = tmp_path / "requeued.txt"
        return ended.returncode, requeued.read_text().split() if requeued.exists() else []

    return run


def test_the_slurm_script_requeues_a_run_that_was_asked_to_end(slurm_script):
    assert slurm_script(Terminated.exit_code) == (143, ["37"])


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_slurm_script_requeues_nothing_else(code, slurm_script):
    assert slurm_script(code) == (code, [])


def test_a_cancelled_slurm_job_is_not_requeued(slurm_script):
    """scancel ends the script as well, which may not catch the signal."""
    assert slurm_script(143, scancel="yes") == (-signal.SIGTERM, [])


def test_the_slurm_script_sends_the_signal_to_a_command_that_train_takes(slurm_script, tmp_path):
    """To the processes: with B: it would be for the script alone. The requeued job may be requeued again."""
    slurm_script(0)
    options = re.findall(r"^#SBATCH (.*)$", (tmp_path / "job.sh").read_text(), re.MULTILINE)
    assert {"--signal=TERM@120", "--requeue", "--ntasks-per-node=1"} <= set(" ".join(options).split())
    cpus, python, script, config, *arguments = (tmp_path / "srun.txt").read_text().splitlines()
    assert (cpus, python, script) == ("--cpus-per-task=64", "python", "train.py")
    assert (REPOSITORY / config.removeprefix("--config=")).exists() and "--distributed" in arguments
    assert f"--workdir={os.environ['HOME']}/runs/speeches" in arguments


def test_one_process_is_all_of_them():
    assert hosts.is_primary() and hosts.all_reduce_any(True) and not hosts.all_reduce_any(False)
    assert hosts.all_reduce_sum(2**64 + 3) == 3


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
        assert list(mesh.process_local_rows(16)) == list(rows)
