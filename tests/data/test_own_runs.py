"""Runs on own files of each kind, those in examples/: trained, evaluated, and used where the files are gone."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.parsing import override
from flaxformer_lab.run import load_run, train

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
TASKS = {
    "images": ("shapes", {"name": "image_classification", "image_size": "8,8", "patch_size": 4}),
    "npz": ("rings.npz", {"name": "tabular_classification"}),
    "text": ("harbour.txt", {"name": "language_modelling", "sequence_length": 8}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a copy of the examples, and the function that makes a run on one kind and gives its folder."""
    root = tmp_path_factory.mktemp("own")
    shutil.copytree(EXAMPLES, root / "files", ignore=shutil.ignore_patterns("*.ipynb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAXFORMER_LAB_CACHE", str(root / "cache"))
        patch.chdir(root)

        @functools.cache
        def made(kind):
            name, task = TASKS[kind]
            tree = {
                "task": {**task, "dataset": f"{kind}:files/{name}"},
                "model": {"width": 8, "depth": 1, "causal": kind == "text"},
                "training": {"steps": 2, "batch_size": 4, "evaluate_batch_size": 4, "steps_per_call": 2},
                "optimizer": {"schedule": "constant"},
                "parallelism": {"strategy": "single"},
            }
            return train(parse_config(tree), root / kind, quiet=True).workdir

        yield root, made


@pytest.fixture
def cache(runs, monkeypatch):
    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(runs[0] / "cache"))


@pytest.mark.parametrize("kind", ["npz", "text", pytest.param("images", marks=pytest.mark.slow)])
def test_a_run_keeps_what_it_needs(runs, cache, kind):
    root, made = runs
    workdir = made(kind)
    assert (
        json.loads((workdir / "config.json").read_text())["task"]["dataset"] == f"{kind}:{root}/files/{TASKS[kind][0]}"
    )
    run = load_run(workdir)
    values = run.evaluate("test")
    assert run.step == 2 and np.isfinite(values["loss"]) and 0 <= values["accuracy"] <= 1
    raw = {
        "images": [root / "files" / "shapes" / "rings" / f"0{n}.png" for n in range(3)],
        "npz": np.zeros((3, 3)),
        "text": ["Monday: ", "Tuesday:", "no rain "],
    }[kind]
    expected = run.predict(raw)
    assert expected.shape[0] == 3

    # Where the files are gone, the prepared copy is evaluated; prediction needs neither.
    (root / "files").rename(root / "moved")
    try:
        assert load_run(workdir).evaluate("test") == values
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLAXFORMER_LAB_CACHE", str(root / "another"))
            raw = [Path(str(each).replace("files", "moved")) for each in raw] if kind == "images" else raw
            np.testing.assert_array_equal(load_run(workdir).predict(raw), expected)
            with pytest.raises(DataError, match=f"task.dataset={kind}:.*does not exist; give the path"):
                load_run(workdir).evaluate("test")
    finally:
        (root / "moved").rename(root / "files")


def test_a_run_is_not_continued_on_other_data(runs, cache, capsys):
    root, made = runs
    workdir = made("npz")
    path, spare = root / "files" / "rings.npz", root / "spare.npz"
    shutil.copy(path, spare)
    with np.load(path) as stored:
        np.savez(path, x=stored["x"] + 1, y=stored["y"])
    longer = parse_config(override(json.loads((workdir / "config.json").read_text()), "training.steps", 4))
    with pytest.raises(
        ConfigError, match=r"npz was started with other data: npz:.*rings\.npz has changed since; restore the files"
    ):
        train(longer, workdir, quiet=True)
    capsys.readouterr()
    load_run(workdir).evaluate("test")
    assert "rings.npz test: the files changed since this run began" in capsys.readouterr().err
    shutil.copy(spare, path)
    assert train(longer, workdir, quiet=True).step == 4
