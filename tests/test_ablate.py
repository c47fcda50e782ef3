"""The commands `ablate` and `report`, as processes that are killed and as calls in this one."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from flaxformer_lab.ablation import local
from flaxformer_lab.ablation.store import Store

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[1]
PRETRAINED = f"--config={REPOSITORY / 'configs' / 'ablations' / 'pretrained.py'}"
RECIPE = """
def get_config():
    return {
        "task": {"name": "delay", "tokens": 4, "features": 4, "evaluation_examples": 32},
        "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"kind": "off"}, "causal": True},
        "training": {"steps": 4, "batch_size": 4, "evaluate_every": 2, "checkpoint_every": 4, "steps_per_call": 2,
                     "evaluate_batch_size": 32},
    }
"""
ABLATION = """
def get_config():
    return {
        "tasks": {"near": {"recipe": "delay.py"}},
        "variants": {"attention_off": "diagonal_ffn,attention_off"},
        "learning_rates": [0.01, 0.03],
        "max_extensions": 0,
        "seeds": [0, 1],
        "claims": [
            {
                "name": "C4",
                "statement": "Attention reaches what a token alone cannot.",
                "comparisons": [
                    {
                        "name": "reaches",
                        "question": "does attention help?",
                        "more": {"task": "near"},
                        "less": {"task": "near", "variant": "attention_off"},
                        "threshold": 0.5,
                    },
                ],
                "conclusions": [
                    {"verdict": "supported", "reason": "it does", "when": {"reaches": "yes"}},
                    {"verdict": "refuted", "reason": "it does not"},
                ],
            },
        ],
    }
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The file of a small ablation."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "delay.py").write_text(RECIPE)
    (folder / "ablation.py").write_text(ABLATION)
    return folder / "ablation.py"


@pytest.fixture(scope="module")
def command(config):
    """The function that starts the command as a process, with as many devices as this one has."""

    def start(workdir):
        line = [sys.executable, "-m", "flaxformer_lab.ablate", f"--config={config}", f"--workdir={workdir}"]
        line += [f"--cpu_devices={jax.device_count()}"]
        return subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture
def call(run_command, monkeypatch):
    """The function that runs a command in this process; returns exit code, output and error lines."""
    monkeypatch.setenv("COLUMNS", "200")
    return run_command


@pytest.fixture(scope="module")
def once():
    """What the first test that needs it has made, for the others."""
    return {}


@pytest.fixture
def undisturbed(call, config, once, tmp_path_factory):
    """The folder of an ablation that ran through, and what it said."""
    if not once:
        workdir = tmp_path_factory.mktemp("ablation") / "run"
        code, out, err = call("flaxformer_lab.ablate", f"--config={config}", f"--workdir={workdir}")
        assert code == 0, err
        once.update(workdir=workdir, out="\n".join(out))
    return once["workdir"], once["out"]


def test_it_ends_in_a_report(undisturbed):
    workdir, out = undisturbed
    assert [f"{number}/2 near / " in out for number in (1, 2)] == [True] * 2
    assert "C4 undecided" in out and "written: " in out
    rows = list(csv.DictReader((workdir / "results.csv").open()))
    assert len(rows) == 2 * 4 and all(0 < float(row["test"]) + 2 for row in rows)
    assert {row["test"] for row in rows}.isdisjoint({row["validation"] for row in rows})
    chosen = {(row["variant"], row["seed"]) for row in rows if row["chosen"] == "true"}
    assert len(chosen) == 4
    assert "## near" in (workdir / "report.md").read_text()


def test_the_same_command_does_nothing_twice_and_writes_the_same_bytes(undisturbed, call, config):
    workdir, _ = undisturbed
    before = (workdir / "results.csv").read_bytes()
    cells = {path: path.stat().st_mtime_ns for path in (workdir / "cells").glob("*.json")}
    code, out, err = call("flaxformer_lab.ablate", f"--config={config}", f"--workdir={workdir}")
    assert code == 0 and "2 of 2 cells are finished already" in "\n".join(out), err
    assert (workdir / "results.csv").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in (workdir / "cells").glob("*.json")} == cells


def test_the_report_is_made_again_from_the_results_alone(undisturbed, call, config, tmp_path, monkeypatch):
    """In an empty folder, byte for byte, and nothing trains."""
    workdir, _ = undisturbed
    monkeypatch.setattr(local, "Population", None)
    flags = f"--config={config}", f"--workdir={tmp_path / 'again'}", f"--from_results={workdir}"
    code, out, err = call("flaxformer_lab.ablate", *flags)
    assert (code, err) == (0, []) and "C4 undecided" in out[0]
    for name in ("results.csv", "report.md", "report.html"):
        assert (tmp_path / "again" / name).read_bytes() == (workdir / name).read_bytes()
    said = (workdir / "report.md").read_text()
    assert "Device: " in said and f"jax {jax.__version__}" in said
    code, _, err = call("flaxformer_lab.ablate", *flags, "--config.seeds=0,2")
    assert code == 4 and "as another config trained it" in err[0]


def killed_until_done(command, workdir, number, generator, longest):
    """Kills the command at random moments, then lets it finish; returns how often it was really interrupted."""
    interrupted = 0
    for _ in range(number):
        process = command(workdir)
        try:
            process.communicate(timeout=generator.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            interrupted += 1
            process.send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM]))
            process.communicate(timeout=120)
    process = command(workdir)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return interrupted


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_in_the_same_table(undisturbed, command, tmp_path):
    interrupted = 0
    for number in range(4):
        workdir = tmp_path / f"run-{number}"
        interrupted += killed_until_done(command, workdir, 5, random.Random(number), 8)
        assert (workdir / "results.csv").read_bytes() == (undisturbed[0] / "results.csv").read_bytes()
    assert interrupted >= 10


@pytest.fixture(scope="module")
def ended(command, tmp_path_factory):
    """The folder of an ablation that a signal ended in its first cell, its exit code and its errors."""
    workdir = tmp_path_factory.mktemp("ended") / "run"
    process = command(workdir)
    while not list((workdir / "cells").glob("*.lock")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    return workdir, process.returncode, err


def test_a_signal_ends_it_at_once_with_its_own_code(ended):
    _, code, err = ended
    assert code == 143 and err.startswith("error: ended by a signal; finished cells are kept")
    assert len(err.splitlines()) == 1


@pytest.mark.slow  # tests/ablation/test_engine.py has it with a stand-in for the other process
def test_two_engines_finish_what_an_ended_one_left_and_do_no_cell_twice(undisturbed, ended, command, call, config):
    """One of them in this process."""
    workdir, *_ = ended
    finished = len(list(workdir.glob("cells/*.json")))
    other = command(workdir)
    code, out, err = call("flaxformer_lab.ablate", f"--config={config}", f"--workdir={workdir}")
    theirs, errors = other.communicate(timeout=300)
    assert (code, other.returncode) == (0, 0), (err, errors)
    done = [line for line in [*out, *theirs.splitlines()] if " s" in line and "/2 near" in line]
    assert len(done) == 2 - finished
    assert (workdir / "results.csv").read_bytes() == (undisturbed[0] / "results.csv").read_bytes()
    assert not list(workdir.rglob("*.partial"))


def test_a_failed_cell_shows_in_the_exit_code_and_the_rest_is_there(call, config, tmp_path, monkeypatch):
    whole = local.Population

    def broken(config, replicas):
        if config.model.attention.kind == "off":
            raise ValueError("no luck")
        return whole(config, replicas)

    monkeypatch.setattr(local, "Population", broken)
    code, out, err = call("flaxformer_lab.ablate", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert code == 7 and not any("Traceback" in line for line in err)
    assert err[0].startswith("error: 1 of 2 cells failed, the first near / attention_off: ValueError: no luck")
    assert any("FAILED: ValueError: no luck" in line for line in out)
    names = [path.name for path in (tmp_path / "run" / "cells").glob("*.json")]
    assert sorted(name.endswith(".failed.json") for name in names) == [False, True]
    assert "Failed: near / attention_off" in (tmp_path / "run" / "report.md").read_text()


# ---------------------------------------------------------------------------------- without training anything


def test_a_dry_run_shows_the_cells_with_keys_overridden_and_writes_nothing(call, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["--config.decide=", "--config.seeds=0,1,2", "--config.variants.single_head=single_head"]
    code, out, err = call("flaxformer_lab.ablate", f"--config={config}", "--workdir=x", "--dry_run", *overrides)
    text = "\n".join(out)
    assert (code, err) == (0, []) and os.listdir(tmp_path) == []
    assert "3 cells x 6 replicas" in text and "single_head" in text and re.search(r"estimate: (\d+:)?\d+:\d\d ", text)


@pytest.mark.parametrize("short", ["--config.claims=C1", "--config.decide=C1", "--config.claims=C1 --only=rotation"])
def test_one_claim_plans_the_two_cells_that_it_needs(call, monkeypatch, short):
    monkeypatch.setattr("flaxformer_lab.ablation.display._estimate", lambda work: "")
    config = REPOSITORY / "configs" / "ablations" / "cross_dimension.py"
    code, out, err = call("flaxformer_lab.ablate", f"--config={config}", "--dry_run", *short.split())
    cells = [row for line in out if len(row := re.split(r" *│ *", line.strip("│ "))) == 6]
    assert (code, err) == (0, []) and [row[:2] for row in cells] == [
        ["rotation", "baseline"],
        ["rotation", "per_dimension"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=neer", "--workdir=x"], "only names neer, which is not among tasks: did you mean near"),
        (["--config.claims=C99", "--workdir=x"], "decide names C99"),
        (["--config=nowhere.py", "--workdir=x"], "nowhere.py is not a file"),
        (["--config.seeds=", "--workdir=x"], "seeds"),
        (["--config.decide=C99", "--workdir=x"], "decide names C99"),
        (["--config.variants.x=ffn_of", "--workdir=x"], "did you mean ffn_off"),
        ([], "--workdir is missing"),
        (["--workdir=x", "--engin=local"], "engin"),
        (["--workdir=x", "--engine=slurm"], "engine"),
        (["--workdir=x", "--ray_address=auto"], "--ray_address=auto needs --engine=ray"),
        (["--workdir=x", "--cpu_devices=0"], "cpu_devices"),
        (["--workdir=x", "--measure_again"], "--measure_again measures exported files, and this ablation has exports="),
        (["--workdir=x", "--from_results=y", "--engine=ray"], "--from_results trains nothing, so it takes no --engine"),
        (["--workdir=x", "--from_results=y", "--loggers=csv"], "so it takes no --loggers; leave it out"),
        (["--workdir=x", "--from_results=y", "--measure_again"], "so it takes no --measure_again; leave it out"),
        ([PRETRAINED, "--workdir=x", "--dry_run"], "a pretrained model and trains nothing, so it takes no --dry_run"),
        ([PRETRAINED, "--workdir=x", "--from_results=y"], "takes no --from_results"),
        ([PRETRAINED, "--workdir=x", "--loggers=csv"], "takes no --loggers"),
        ([PRETRAINED, "--workdir=x", "--engine=ray"], "takes no --engine"),
        ([PRETRAINED, "--workdir=x", "--only=FFN"], "takes no --only"),
        ([PRETRAINED, "--workdir=x", "--config.seeds=3"], "unknown key seeds (value '3'): an ablation of a pretrained"),
        ([PRETRAINED, "--workdir=x", "--config.claims=C18"], "unknown key claims (value 'C18')"),
    ],
)
def test_what_is_wrong_is_one_clear_error(call, config, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = arguments if any(each.startswith("--config=") for each in arguments) else [f"--config={config}", *arguments]
    code, out, err = call("flaxformer_lab.ablate", *given)
    assert code == 2 and message in err[0] and out == []
    assert not any("Traceback" in line for line in err) and os.listdir(tmp_path) == []


def test_a_report_can_be_had_half_way(call, undisturbed, tmp_path):
    workdir, _ = undisturbed
    half = Store(tmp_path / "half")
    whole = Store(workdir)
    half.claim(whole.read())
    cell = whole.read().cells[0]
    half.finish(cell, {key: value for key, value in whole.result(cell).items() if key != "key"})
    code, out, err = call("flaxformer_lab.report", f"--workdir={half.path}")
    assert (code, err) == (0, []) and "C4 undecided" in out[0]
    assert "1 of 2 cells" in (half.path / "report.md").read_text()
    code, _, err = call("flaxformer_lab.report", f"--workdir={tmp_path}")
    assert code == 4 and "no ablation.json" in err[0]
    assert json.loads((half.path / "ablation.json").read_text())["config"]["seeds"] == [0, 1]


def test_a_pretrained_model_is_cut_and_what_is_written_is_told(call, tmp_path, monkeypatch):
    """With a stand-in for the cuts, which take minutes."""
    made = []

    def cut(config, workdir, facts):
        made.append((config.passages, workdir))
        workdir.mkdir()
        (workdir / "learned.json").write_text("{}")
        score = {"value": 3.0, "difference": 0.0, "low": 0.0, "high": 0.0, "p": None}
        return [{"cut": "intact", "layer": "all", "scores": {"nats": score}}, {"cut": "provenance", "layer": ""}]

    monkeypatch.setattr("flaxformer_lab.api.run_cuts", cut)
    workdir = tmp_path / "cuts"
    code, out, err = call("flaxformer_lab.ablate", PRETRAINED, f"--workdir={workdir}", "--config.learned.passages=7")
    assert (code, err, made) == (0, [], [(7, workdir)])
    names = ("results.csv", "report.md", "report.html")
    assert out == [f"written: {workdir / name}" for name in names]
    code, _, err = call("flaxformer_lab.report", f"--workdir={workdir}")
    assert code == 4 and "has cuts of a pretrained model (learned.json)" in err[0] and "give the `ablate`" in err[0]
