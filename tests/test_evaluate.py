import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxformer_lab
from flaxformer_lab.config import parse_config
from flaxformer_lab.data import source
from flaxformer_lab.errors import ConfigError, DataError, RunError
from flaxformer_lab.parsing import override
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks import classification, language_modelling
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.loop import train

pytestmark = pytest.mark.integration

IMAGES = {
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4},
    "model": {"width": 8, "depth": 0},
    # So large that the loss grows again, and the best checkpoint is not the last.
    "optimizer": {"name": "sgd", "learning_rate": 1.0, "schedule": "constant"},
    "training": {
        "steps": 12,
        "batch_size": 16,
        "evaluate_every": 4,
        "evaluate_batch_size": 64,
        "checkpoint_every": 4,
        "steps_per_call": 4,
        "keep_last": 3,
    },
    "parallelism": {"strategy": "single"},
}
TEXT = {
    **IMAGES,
    "task": {"name": "language_modelling", "dataset": "lab_speeches", "objective": "masked", "sequence_length": 128},
    "training": {**IMAGES["training"], "steps": 2, "evaluate_batch_size": 64},
}


@pytest.fixture(scope="module")
def images(decoded_once, tmp_path_factory):
    """The folder of a finished run on images; not to be written."""
    folder = tmp_path_factory.mktemp("images") / "run"
    train(parse_config(IMAGES), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The folder of a finished run on text, of which each split has a hundred windows; not to be written."""
    folder = tmp_path_factory.mktemp("text") / "run"
    whole = language_modelling.LanguageModelling.examples
    with pytest.MonkeyPatch.context() as patch:
        few = lambda self, split: dataclasses.replace(whole(self, split), number=100)  # noqa: E731
        patch.setattr(language_modelling.LanguageModelling, "examples", few)
        train(parse_config(TEXT), folder, quiet=True)
        yield folder


def reported(folder, split, step):
    """What training wrote for a split at a step."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {each["name"]: each["value"] for each in entries if (each["split"], each["step"]) == (split, step)}


@pytest.fixture
def no_data(monkeypatch):
    """A machine without any data set."""

    def missing(dataset, split):
        raise DataError(f"{dataset} is not here")

    for module in (source, classification, language_modelling):
        monkeypatch.setattr(module, "open_split", missing)


# -------------------------------------------------------------------------------------------- the command


@pytest.fixture
def evaluate(run_command):
    """The function that runs the command in this process; returns exit code, output lines and error lines."""
    return functools.partial(run_command, "flaxformer_lab.evaluate")


@pytest.mark.parametrize(
    ("arguments", "split", "step"),
    [
        ([], "test", 12),
        (["--split=validation"], "validation", 12),
        (["--step=8", "--split=validation"], "validation", 8),
        (["--step", "4", "--split", "validation"], "validation", 4),
    ],
)
def test_the_figures_are_those_of_training(evaluate, images, arguments, split, step):
    code, out, err = evaluate(f"--workdir={images}", *arguments)
    assert (code, err) == (0, [])
    expected = reported(images, split, step)
    assert json.loads(out[-1]) == {"step": step, "split": split, **expected} and expected
    table = "\n".join(out[:-1])
    for name, value in expected.items():
        assert re.search(rf"{name} +│ +{value:.6f}", table)


def test_the_best_checkpoint_has_the_lowest_validation_loss(evaluate, images):
    losses = {step: reported(images, "validation", step)["loss"] for step in (4, 8, 12)}
    best = min(losses, key=losses.get)
    assert best != 12  # which is the one that is taken without --step
    _, out, _ = evaluate(f"--workdir={images}", "--step=best", "--split=validation")
    assert json.loads(out[-1]) == {"step": best, "split": "validation", **reported(images, "validation", best)}


@pytest.mark.slow
def test_text_that_is_masked_gives_its_figures_again(evaluate, text):
    _, out, _ = evaluate(f"--workdir={text}", "--split=validation")
    assert json.loads(out[-1]) == {"step": 2, "split": "validation", **reported(text, "validation", 2)}


def damaged(name, content):
    def damage(folder):
        (folder / name).write_text(content)

    return damage


def without(name):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def spoilt_values(folder):
    for path in (folder / "checkpoints").rglob("d/*"):
        path.write_bytes(bytes(path.stat().st_size))


def untouched(folder):
    pass


@pytest.mark.parametrize(
    ("damage", "arguments", "code", "message"),
    [
        (shutil.rmtree, [], 4, r"run does not exist"),
        (without("config.json"), [], 4, r"no config\.json"),
        (without("metadata.json"), [], 4, r"metadata\.json is missing or damaged"),
        (without("checkpoints"), [], 4, r"holds no checkpoint; train first"),
        (damaged("config.json", '{"seed": 0,'), [], 4, r"config\.json is missing or damaged"),
        (damaged("config.json", "[]"), [], 4, r"config\.json is damaged"),
        (damaged("config.json", '{"sead": 0}'), [], 4, r"config\.json is damaged .*did you mean seed"),
        (damaged("metadata.json", "{}"), [], 4, r"metadata\.json is damaged"),
        (damaged("metadata.json", '{"image_shape": 3, "num_classes": "x"}'), [], 4, r"metadata\.json is damaged"),
        (
            damaged("metadata.json", '{"image_shape": [8, 8, 1], "num_classes": 11}'),
            [],
            4,
            r"damaged or of another model",
        ),
        (spoilt_values, [], 4, r"is damaged"),
        (untouched, ["--step=5"], 4, r"no checkpoint of step 5; choose one of 4, 8, 12"),
        (untouched, ["--step=last"], 2, r"--step=last must be a whole number or best"),
        (untouched, ["--step=-1"], 2, r"--step=-1 must be a whole number"),
        (untouched, ["--step=²"], 2, r"--step=² must be a whole number"),
        (untouched, ["--output=x.csv"], 2, r"--output=x\.csv is for the scores of --csv; add --csv=FILE, or leave"),
        (untouched, ["--split=training"], 2, r"split.*train.*validation.*test"),
        (
            untouched,
            ["--split=test", "--csv=x.csv"],
            2,
            r"--split=test: a file has no splits; leave --split or --csv=x",
        ),
        (untouched, ["--config.seed=1"], 2, r"--config\.seed=1: a checkpoint keeps the config"),
        (untouched, ["--wrokdir=x"], 2, r"wrokdir"),
        (untouched, ["test"], 2, r"test is not understood"),
    ],
)
def test_what_is_wrong_is_one_clear_error(evaluate, images, tmp_path, damage, arguments, code, message):
    folder = tmp_path / "run"
    shutil.copytree(images, folder)
    damage(folder)
    found, out, err = evaluate(f"--workdir={folder}", *arguments)
    assert found == code and out == []
    assert err[0].startswith("error: ") and re.search(message, err[0]), err
    assert not any("Traceback" in line for line in err) and len(err) == 1


def test_without_a_folder_the_command_asks_for_one(evaluate):
    code, _, err = evaluate()
    assert code == 2 and any("--workdir" in line for line in err)


def test_a_data_set_that_is_missing_is_one_clear_error(images, no_data):
    with pytest.raises(DataError, match="lab_digits is not here"):
        load_run(images).evaluate("test")


def test_looking_changes_nothing(evaluate, images):
    before = {path: path.stat().st_mtime_ns for path in images.rglob("*")}
    evaluate(f"--workdir={images}")
    assert {path: path.stat().st_mtime_ns for path in images.rglob("*")} == before


# ------------------------------------------------------------------------------------------------- Python


def test_a_run_has_its_config_model_parameters_and_step(images):
    run = flaxformer_lab.load_run(images)
    assert run.config == parse_config(IMAGES) and run.step == 12
    assert run.params["head"]["kernel"].shape == (8, 10)
    assert load_run(str(images), 4).step == 4
    assert not np.array_equal(load_run(images, 4).params["head"]["kernel"], run.params["head"]["kernel"])


def test_predictions_are_those_of_the_model(images):
    run = load_run(images)
    inputs = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 1)).astype(np.float32)
    logits = run.predict_preprocessed(inputs)
    assert logits.shape == (5, 10)
    expected, _ = run.model.apply(run.params, run.state.model_state, jnp.asarray(inputs))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.predict_preprocessed(jnp.asarray(inputs[2:3])), expected[2:3], rtol=1e-5, atol=1e-6)


def test_predictions_score_what_evaluation_says(images):
    run = load_run(images)
    data = run.task.examples("test").load()
    preprocessed = run.predict_preprocessed(data["image"].astype(np.float32) / 127.5 - 1)
    for logits in (run.predict(data["image"]), run.predict(data), run.predict(data["image"][..., 0]), preprocessed):
        accuracy = np.mean(np.argmax(logits, axis=1) == data["label"])
        assert accuracy == pytest.approx(run.evaluate("test")["accuracy"]) == reported(images, "test", 12)["accuracy"]


def test_predictions_for_a_table_score_what_evaluation_says(decoded_once, tmp_path):
    tree = {**IMAGES, "task": {"name": "tabular_classification"}, "optimizer": {"learning_rate": 0.01}}
    train(parse_config(tree), tmp_path / "run", quiet=True)
    run = load_run(tmp_path / "run")
    data = run.task.examples("test").load()
    accuracy = np.mean(np.argmax(run.predict(data["columns"]), axis=1) == data["label"])
    assert (
        accuracy
        == pytest.approx(run.evaluate("test")["accuracy"])
        == reported(tmp_path / "run", "test", 12)["accuracy"]
    )
    assert not np.allclose(run.predict(data["columns"]), run.predict_preprocessed(data["columns"]))
    with pytest.raises(DataError, match=r"predict: columns\[2\] of row 1 is nan, .* task\.missing=error; fill it in"):
        run.predict(np.where(np.arange(26).reshape(2, 13) == 15, np.nan, 1.0))
    for rows in (np.ones((2, 12)), np.ones(13), [["a"] * 13]):
        with pytest.raises(ConfigError, match=r"which takes \(batch, 13\) numbers"):
            run.predict(rows)


@pytest.mark.parametrize(
    "scaled",
    [lambda x: x / 127.5 - 1, lambda x: x / 255, lambda x: x.astype(np.float32), lambda x: x.astype(np.int32) * 16],
)
def test_images_that_are_not_raw_are_refused(images, scaled):
    run = load_run(images)
    raw = run.task.examples("test").load()["image"][:2]
    with pytest.raises(ConfigError, match=r"trained on, uint8 from 0 to 255; scale them so, or give .*_preprocessed"):
        run.predict(scaled(raw))
    with pytest.raises(ConfigError, match="the examples lack 'image'; they have label"):
        run.predict({"label": raw})


def test_texts_are_predicted_as_they_are(text):
    run = load_run(text)
    words = ["We the People of the United Stat" * 4, "b" * 128]
    symbols = np.stack([run.task.encode(each) for each in words]).astype(np.int32)
    np.testing.assert_array_equal(run.predict(words), run.predict_preprocessed(symbols))
    with pytest.raises(ConfigError, match="text 1 has 3 symbols; this model takes 128"):
        run.predict([words[0], "abc"])


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 8, 9), (5, 64), (5, 8, 8, 3), (5, 4, 4, 1)])
def test_inputs_of_another_shape_are_refused(images, shape):
    run = load_run(images)
    for predict, dtype in ((run.predict, np.uint8), (run.predict_preprocessed, np.float32)):
        with pytest.raises(ConfigError, match=r"do not fit this model, which takes \(batch, 8, 8, 1\)"):
            predict(np.zeros(shape, dtype))


def test_text_is_predicted_symbol_by_symbol(text):
    run = load_run(text)
    symbols = run.task.encode("We the People of the United Stat" * 4)
    logits = run.predict(symbols[None].astype(np.int32))
    assert logits.shape == (1, 128, run.task.metadata["num_symbols"])
    with pytest.raises(ConfigError, match=r"which takes \(batch, 128\)"):
        run.predict(symbols[None, :127].astype(np.int32))


@pytest.mark.parametrize("folder", ["images", "text"])
def test_a_model_can_be_used_where_its_data_is_not(folder, request):
    trained = request.getfixturevalue(folder)  # with the data
    request.getfixturevalue("no_data")
    run = load_run(trained)
    dummy = run.task.input_spec(2)
    assert run.predict_preprocessed(jnp.zeros(dummy.shape, dummy.dtype)).shape[0] == 2


def test_a_run_of_many_devices_is_evaluated_on_one(tmp_path, images, monkeypatch):
    """Where the batch of training cannot be shared by the devices that are here."""
    shutil.copytree(images, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"single"', '"auto"'))
    assert load_run(tmp_path / "run").experiment.strategy.num_devices == jax.local_device_count() == 4
    config.write_text(config.read_text().replace('"batch_size": 16', '"batch_size": 18'))
    run = load_run(tmp_path / "run")
    assert run.experiment.strategy.num_devices == 1
    assert run.evaluate("test") == reported(images, "test", 12)


@pytest.mark.parametrize("workdir", ["nowhere", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, workdir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="give --workdir"):
        load_run(tmp_path / workdir)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and not any((tmp_path / "empty").iterdir())


def test_what_decides_nothing_may_be_changed_to_evaluate(evaluate, images):
    flags = ["--config.training.evaluate_batch_size=7", "--config.parallelism.strategy=auto"]
    code, out, err = evaluate(f"--workdir={images}", *flags)
    assert (code, err) == (0, [])
    found, expected = json.loads(out[-1]), reported(images, "test", 12)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    run = load_run(images, changes={"training.evaluate_batch_size": 7})
    assert run.config.training.evaluate_batch_size == 7
    with pytest.raises(
        ConfigError, match=r"--config\.seed=1: a checkpoint keeps .*; only what does not affect .*: train"
    ):
        load_run(images, changes={"seed": 1})


def test_a_checkpoint_that_a_training_run_replaces_meanwhile_is_no_damage(images, tmp_path, monkeypatch):
    """With keep_last=1 the one that is being read goes as soon as the next one is whole."""
    shutil.copytree(images, tmp_path / "run")
    saved = tmp_path / "run" / "checkpoints"
    for step in ("4", "8"):
        shutil.rmtree(saved / step, ignore_errors=True)
    saved.joinpath("12").rename(tmp_path / "12")
    shutil.copytree(images / "checkpoints" / "8", saved / "8")
    restore = Checkpoints.restore

    def replaced_meanwhile(self, *arguments):
        if not (saved / "12").exists():
            shutil.rmtree(saved / "8" / "state")
            (tmp_path / "12").rename(saved / "12")
        return restore(self, *arguments)

    monkeypatch.setattr(Checkpoints, "restore", replaced_meanwhile)
    assert load_run(tmp_path / "run").step == 12


def test_a_run_says_what_it_is_in_one_line(images):
    shown = repr(load_run(images))
    assert shown == "Run(transformer for image_classification of lab_digits, step 12, 274 parameters)"


def test_overriding_is_not_the_way_to_change_a_run(images):
    with pytest.raises(AttributeError):
        load_run(images).config.seed = 3
    assert parse_config(override(IMAGES, "seed", 3)) != load_run(images).config
