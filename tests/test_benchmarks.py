"""The benchmarks ask the machine only what macOS can answer too."""

import os
import platform
import runpy
import shutil
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def without_proc(monkeypatch, tmp_path):
    """The function of a benchmark, on a machine that has no /proc."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def function(file, name):
        found = runpy.run_path(str(BENCHMARKS / file))[name]
        monkeypatch.setitem(found.__globals__, "Path", lambda path: tmp_path / Path(path).relative_to("/"))
        return found

    return function


def test_the_machine_is_described_without_proc(without_proc, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert without_proc("train_step.py", "machine")("cpu") == f"{os.cpu_count()} cores of arm, Darwin, float32"


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps")
def test_resident_memory_is_known_without_proc(without_proc):
    assert 50e6 < without_proc("overheads.py", "resident_bytes")() < 50e9  # JAX is imported


def test_cores_are_asked_for_where_macos_answers_too():
    for path in BENCHMARKS.glob("*.py"):
        assert "sched_getaffinity" not in path.read_text(), f"{path.name}: flaxformer_lab.compilation.available_cores"
