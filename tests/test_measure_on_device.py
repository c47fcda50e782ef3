"""Everything that is to be measured on a GPU as one command: what it runs, and that one failure does not end it."""

import sys

import pytest

from tools import measure_on_device

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1], 'found.json').write_text('{}')"


def test_what_it_runs_exists():
    for name, (script, *_) in measure_on_device.commands("gpu").items():
        assert script.endswith(f"/{name}.py") and (measure_on_device.ROOT / script).is_file()


def test_each_has_a_limit_and_the_rest_goes_on(tmp_path, monkeypatch, capfd):
    results, out = tmp_path / "results", tmp_path / "out"
    results.mkdir()
    (results / "old.json").write_text("{}")
    commands = {
        "fails": ["-c", "import sys; sys.exit(3)"],
        "hangs": ["-c", "while True: pass"],
        "writes": ["-c", WRITES, str(results)],
    }
    monkeypatch.setattr(measure_on_device, "commands", lambda device: commands)
    monkeypatch.setattr(measure_on_device, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["measure_on_device.py", "--limit_s=2", f"--out={out}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_on_device.time, "time", lambda: (results / "old.json").stat().st_mtime + 1e-3)
        assert measure_on_device.main() == 1
    shown = capfd.readouterr().out
    assert "fails: failed with exit code 3" in shown and "hangs: stopped after 2 s" in shown and "writes: ok" in shown
    assert [path.name for path in out.iterdir()] == ["found.json"]
