"""The command that measures a checkpoint, on a run of a probe."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxformer_lab.analysis.jacobian import mixing_energy
from flaxformer_lab.config import parse_config
from flaxformer_lab.run import load_run
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.loop import train

pytestmark = pytest.mark.integration

CONFIG = {
    "task": {"name": "delay", "tokens": 4, "features": 4, "evaluation_examples": 64},
    "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}, "causal": True},
    "training": {"steps": 4, "batch_size": 8, "checkpoint_every": 2, "evaluate_every": 4, "steps_per_call": 2},
    "parallelism": {"strategy": "single"},
}
FIGURES = {"feature_mixing.png", "token_mixing.png", "attention_maps.png", "depth.png"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run; not to be written."""
    folder = tmp_path_factory.mktemp("delay") / "run"
    train(parse_config(CONFIG), folder, quiet=True)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of it, to be measured."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def measure(run_command):
    """The function that runs the command in this process; returns exit code, output lines and error lines."""
    return functools.partial(run_command, "flaxformer_lab.measure")


def test_the_command_prints_a_table_and_writes_values_and_figures(measure, folder):
    code, out, err = measure(f"--workdir={folder}")
    assert (code, err) == (0, [])
    written = folder / "measures" / "4"
    assert {path.name for path in written.iterdir()} == FIGURES | {"measures.json"}
    values = json.loads((written / "measures.json").read_text())
    table = "\n".join(out)
    for name in ("cross_feature_energy", "interaction_share", "hessian_interaction"):
        assert f"{values[name]['value']:.4f}" in table and f"{values[name]['standard_error']:.4f}" in table
    for name in ("oddness", "parameters", "rank_residual", "blocks.0.head_importance"):
        assert name in table and name in values
    assert sum("written: " in line for line in out) == 5
    for name in FIGURES:
        with Image.open(written / name) as image:
            image.verify()


def test_what_is_written_is_what_the_function_finds_and_a_delayed_model_never_looks_ahead(measure, folder):
    measure(f"--workdir={folder}", "--measures=mixing", "--examples=5", "--split=validation")
    written = json.loads((folder / "measures" / "4" / "measures.json").read_text())
    assert (written["step"], written["split"], written["examples"]) == (4, "validation", 5)
    subject = load_run(folder).subject("validation", 5)
    features, tokens = mixing_energy(subject.body, subject.vectors)
    np.testing.assert_allclose(written["feature_energy"], features.matrix, rtol=1e-5)
    assert written["cross_token_energy"]["value"] == pytest.approx(tokens.cross.value)
    energy = np.array(written["token_energy"])
    assert np.all(np.triu(energy, 1) == 0) and np.all(np.diag(energy) > 0) and np.any(np.tril(energy, -1) > 0)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_is_measured_are_the_examples_of_evaluation(trained, split):
    run = load_run(trained)
    subject = run.subject(split, 64)
    outputs, _ = jax.jit(run.model.apply)(run.params, run.state.model_state, subject.batch["inputs"])
    total, weight = run.task.loss_and_metrics(outputs, subject.batch)["loss"]
    assert float(total / weight) == pytest.approx(run.evaluate(split)["loss"], rel=1e-6)


@pytest.mark.slow
def test_two_calls_write_the_same_bytes(measure, folder):
    target = folder / "measures" / "4" / "measures.json"
    arguments = [f"--workdir={folder}", "--measures=depth,symmetry", "--examples=8"]
    measure(*arguments)
    first = target.read_bytes()
    measure(*arguments)
    assert target.read_bytes() == first


def test_an_earlier_checkpoint_has_measures_of_its_own(measure, folder):
    for step in (2, 4):
        measure(f"--workdir={folder}", f"--step={step}", "--measures=symmetry")
    early, late = (json.loads((folder / "measures" / step / "measures.json").read_text()) for step in ("2", "4"))
    assert early["oddness"] != late["oddness"]


def test_figures_of_an_earlier_call_do_not_stay_beside_new_values(measure, folder):
    measure(f"--workdir={folder}", "--measures=attention,depth")
    assert (folder / "measures" / "4" / "attention_maps.png").exists()
    measure(f"--workdir={folder}", "--measures=depth")
    assert {path.name for path in (folder / "measures" / "4").iterdir()} == {"measures.json", "depth.png"}


def without_config(folder):
    (folder / "config.json").unlink()


def of_another_task(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["task"]["features"] = 5
    path.write_text(json.dumps(config))


def with_a_spoilt_embedding(folder):
    run = load_run(folder)
    params = dict(run.params) | {"embedding": jax.tree.map(lambda leaf: leaf * jnp.nan, run.params["embedding"])}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(dataclasses.replace(run.state, step=jnp.int32(5), params=params), {"loss": 0.0})
        checkpoints.wait()


def in_the_way(folder):
    (folder / "measures").write_text("a file where a folder must be")


def untouched(folder):
    pass


@pytest.mark.parametrize(
    ("damage", "arguments", "code", "message"),
    [
        (untouched, ["--measures=mixin"], 6, "mixin is not a measure: did you mean mixing?"),
        (untouched, ["--examples=1"], 2, "examples"),
        (untouched, ["--random_vectors=0"], 2, "random_vectors"),
        (untouched, ["--step=3"], 4, "no checkpoint of step 3; choose one of 2, 4"),
        (untouched, ["--split=training"], 2, "split"),
        (untouched, ["--config.seed=1"], 2, "a checkpoint keeps the config"),
        (without_config, [], 4, "no config.json"),
        (of_another_task, [], 4, "damaged or of another model"),
        (with_a_spoilt_embedding, [], 6, "the token vectors are not finite"),
        (in_the_way, ["--measures=symmetry"], 4, "cannot be written"),
        (shutil.rmtree, [], 4, "does not exist"),
    ],
)
def test_what_is_wrong_is_one_clear_error(measure, folder, damage, arguments, code, message):
    damage(folder)
    before = sorted(folder.rglob("*"))
    found, out, err = measure(f"--workdir={folder}", *arguments)
    assert found == code and message in err[0] and err[0].startswith("error: ")
    assert len(err) == 1 and sorted(folder.rglob("*")) == before
