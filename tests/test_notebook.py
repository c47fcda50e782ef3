"""examples/lab.ipynb, with fewer steps and heads than it has for its readers."""

import contextlib
import io
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = json.loads((REPOSITORY / "examples" / "lab.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert (NOTEBOOK["nbformat"], len({cell["id"] for cell in NOTEBOOK["cells"]})) == (4, len(NOTEBOOK["cells"]))
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert all(len(line) <= 120 for source in CODE for line in source.splitlines())


@pytest.mark.slow
def test_its_cells_run_one_after_another(decoded_once, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    space, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for source in CODE:
            exec(source.replace("STEPS = 300", "STEPS = 20").replace("range(4)", "range(1)"), space)
    assert space["run"].step == 20 and space["config"].model.width == 32
    assert [line.split()[0] for line in printed.getvalue().splitlines()] == ["0", "ffn"]
    assert [score.variant for score in space["report"].summary.scores] == ["baseline", "without FFN"]
    assert all(path.exists() for path in space["report"].files)
