"""The list of planted faults: each is in its file, once. `make mutants` plants them."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "tools"))
    MUTANTS = runpy.run_path(str(ROOT / "tools" / "mutants.py"))


@pytest.mark.parametrize("file", MUTANTS["TESTS"])
def test_every_fault_can_be_planted(file):
    text = (ROOT / "flaxformer_lab" / file).read_text()
    faults = [fault for fault in MUTANTS["FAULTS"] if fault.file == file]
    assert faults and not [fault.name for fault in faults if text.count(fault.right) != 1 or fault.right == fault.wrong]
    for fault in faults:
        compile(text.replace(fault.right, fault.wrong), file, "exec")


def test_there_are_many_and_their_names_differ():
    names = [fault.name for fault in MUTANTS["FAULTS"]]
    assert len(set(names)) == len(names) >= 36
