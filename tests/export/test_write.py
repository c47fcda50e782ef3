"""Files of each format: what they compute, what they say of themselves, and what is refused."""

import csv
import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import flaxformer_lab
from flaxformer_lab.config import parse_config
from flaxformer_lab.data.own.schema import Schema, table_of
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.export import formats
from flaxformer_lab.export.formats import FORMATS, load_exported
from flaxformer_lab.functional import metrics
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.initialization import initial_weights
from flaxformer_lab.training.loop import train
from flaxformer_lab.training.state import initial_state
from tests.pretrained_folders import write_golden, write_sentence_transformer

pytestmark = pytest.mark.integration

DIGITS = {
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4},
    "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "norm": {"kind": "batchnorm"}},
    "training": {"steps": 1, "batch_size": 8, "evaluate_batch_size": 256, "steps_per_call": 1},
    "parallelism": {"strategy": "single"},
}


@pytest.fixture(scope="module")
def digits(decoded_once, tmp_path_factory):
    """A run on images, whose norms have a state; not to be written, except by the command."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    train(parse_config(DIGITS), folder, quiet=True)
    return load_run(folder)


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    """One file of each format; not to be written."""
    folder = tmp_path_factory.mktemp("files")
    for name, each in FORMATS.items():
        digits.export(folder / f"digits{each.suffix}", name, examples=20)
    return folder


@pytest.fixture(scope="module")
def images(digits):
    """The first test images, as they are stored."""
    return digits.task.examples("test").load()["image"][:5]


def fresh(config):
    """A run without training."""
    experiment = make_experiment(parse_config(config))
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    return Run(experiment, state, Path("none"))


def test_plain_jax_runs_the_program_on_raw_images(digits, files, images):
    program = jax.export.deserialize(bytearray((files / "digits.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for rows in (slice(0, 1), slice(0, 5)):
        np.testing.assert_allclose(program.call(image=images[rows]), digits.predict(images[rows]), rtol=0, atol=1e-5)
    assert np.ptp(digits.predict(images), axis=0).max() > 1e-3  # outputs that depend on the image


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_pretrained_models_of_texts(tmp_path, format):
    """One text in, whatever the run is judged by: a class of each text, or a rating of two of them."""
    pytest.importorskip("tokenizers")
    (tmp_path / "classes.tsv").write_text("ABC\t0\nABCDEFGH\t1\nA\t1\n")
    (tmp_path / "pairs.tsv").write_text("ABC\tA\t3\nABCDEFGH\tAB\t1\nA\tAAA\t7\n")
    folders = {
        "classes": write_golden(tmp_path / "bert", "bert_sequence"),
        "pairs": write_sentence_transformer(tmp_path / "sentences"),
    }
    for name, folder in folders.items():
        changes = {"task.dataset": f"tsv:{tmp_path / name}.tsv", "task.sequence_length": 6}
        run = flaxformer_lab.load_pretrained(folder, changes)
        exported = run.export(tmp_path / f"{name}{FORMATS[format].suffix}", format)
        assert {each: like.shape[1:] for each, like in exported.spec.items()} == {"inputs": (6,), "valid": (6,)}
        described, parity = exported.description, exported.description["parity"]
        inputs = run.task.tokenizer.batch(["ABCD", "A"], 6)
        expected = run.predict(inputs)
        assert described["outputs"][0]["shape"] == ["batch", *expected.shape[1:]] and parity["examples"] == 3
        assert parity["metrics"] == pytest.approx(run.evaluate("validation"), abs=1e-5)
        found = exported.predict({"inputs": inputs, "valid": inputs != 0})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".stablehlo", ".onnx", ".safetensors"])
def test_a_file_is_read_back_without_the_run(digits, files, images, suffix):
    exported = load_exported(files / f"digits{suffix}")
    expected = digits.predict(images)
    for raw in (images, images.astype(np.int64), {"image": images.tolist()}):
        np.testing.assert_allclose(exported.predict(raw), expected, rtol=0, atol=1e-5)
    assert repr(exported) == f"Exported(digits{suffix}: image)"


@pytest.mark.parametrize("suffix", [".stablehlo", ".onnx", ".safetensors"])
def test_the_description(digits, files, suffix):
    file = files / f"digits{suffix}"
    description = json.loads((files / f"digits{suffix}.json").read_text())
    assert description["inputs"] == [{"name": "image", "shape": ["batch", 8, 8, 1], "dtype": "uint8"}]
    assert description["outputs"] == [{"name": "outputs", "shape": ["batch", 10], "dtype": "float32"}]
    assert description["classes"] == list("0123456789") and description["step"] == 1
    assert description["bytes"] == file.stat().st_size
    assert description["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert description["versions"] == {"flaxformer_lab": flaxformer_lab.__version__, "jax": jax.__version__}
    assert parse_config(description["config"]) == digits.config and description["metadata"] == digits.task.metadata
    assert ("platforms" in description) == (suffix == ".stablehlo")
    # One number has four bytes; the program and the names take the rest.
    numbers = sum(leaf.size for leaf in jax.tree.leaves((digits.params, digits.state.model_state)))
    assert 0 < description["bytes"] - 4 * numbers < 40_000


def test_a_program_does_not_say_where_it_was_made(files):
    content = (files / "digits.stablehlo").read_bytes()
    assert b".py" not in content and b"flaxformer" not in content and len(content) < 20_000


def test_parity_is_that_of_the_validation_split(digits, files):
    parity = json.loads((files / "digits.stablehlo.json").read_text())["parity"]
    assert parity["examples"] == 20 and 0 <= parity["largest_difference"] <= parity["tolerance"]
    stored = digits.task.examples("validation").load()
    outputs = np.asarray(digits.predict(stored["image"][:20]), np.float64)
    assert parity["tolerance"] == pytest.approx(1e-5 * max(1, np.abs(outputs).max()))
    right = np.mean(outputs.argmax(axis=1) == stored["label"][:20])
    assert parity["metrics"]["accuracy"] == parity["metrics_of_run"]["accuracy"] == pytest.approx(right)


def test_weights_have_their_names_and_start_another_run(digits, files):
    ours = leaf_paths(digits.params) | leaf_paths(digits.state.model_state)
    with safe_open(files / "digits.safetensors", "numpy") as file:
        assert set(file.keys()) == set(ours)
        assert parse_config(json.loads(file.metadata()["flaxformer_lab"])["config"]) == digits.config
        for name, leaf in ours.items():
            np.testing.assert_array_equal(file.get_tensor(name), leaf)
    source = dataclasses.replace(digits.config.training, init_from=str(files / "digits.safetensors"))
    initial = initial_weights(source, digits.experiment.abstract_state)
    assert set(initial.values) == set(ours) and not initial.drawn and not initial.unused
    np.testing.assert_array_equal(initial.values["head.kernel"], digits.params["head"]["kernel"])


def test_a_table_goes_in_as_numbers_and_levels_and_predictions_have_their_units(tmp_path):
    """Scaled, filled and marked as missing inside; the description has the levels of each category."""
    houses = Path(__file__).parents[2] / "examples" / "houses.csv"
    task = {"name": "tabular_regression", "dataset": f"csv:{houses}?target=price&drop=energy", "missing": "indicator"}
    run = fresh({"task": task, "model": SMALL})
    exported = run.export(tmp_path / "houses.stablehlo", examples=4)
    with houses.open() as file:
        rows = list(csv.DictReader(file))[:3]
    columns, categories = Schema.from_json(exported.description["metadata"]["table"]).encode(table_of(rows))
    assert np.isnan(columns).sum() == 1 and categories.shape[1] > 1
    prices = exported.predict({"columns": columns, "categories": categories})
    np.testing.assert_allclose(prices, run.predict(rows), rtol=1e-5)
    assert prices.shape == (3,) and np.mean(prices) > 10_000
    parity = exported.description["parity"]
    assert parity["metrics"] == pytest.approx(parity["metrics_of_run"], rel=1e-4)
    assert 0.01 < parity["tolerance"] < 100


SMALL = {"width": 8, "depth": 0}


def test_text_goes_in_as_symbols(decoded_once, tmp_path):
    run = fresh({"task": {"name": "language_modelling", "sequence_length": 16}, "model": SMALL | {"causal": True}})
    exported = run.export(tmp_path / "speeches.stablehlo", examples=4)
    symbols = exported.description["metadata"]["symbols"]
    encoded = [[symbols.index(letter) for letter in text] for text in ("My fellow citize", "o be or not to b")]
    np.testing.assert_allclose(
        exported.predict(encoded), run.predict(["My fellow citize", "o be or not to b"]), rtol=0, atol=1e-5
    )
    assert exported.description["outputs"][0]["shape"] == ["batch", 16, len(symbols)]


# ------------------------------------------------------------------------------------------- what is refused


def skewed(monkeypatch, name, skew):
    """Files of a format compute something else than the run."""
    chosen = FORMATS[name]

    def read(path):
        spec, function = chosen.read(path)
        return spec, lambda **arrays: function(**arrays) + skew

    monkeypatch.setitem(formats.FORMATS, name, chosen._replace(read=read))


@pytest.mark.parametrize(("skew", "shown"), [(1e-3, "0.001"), (np.nan, "nan")])
def test_a_file_that_computes_something_else_is_removed(digits, tmp_path, monkeypatch, skew, shown):
    old = tmp_path / "old.safetensors"
    old.write_text("old")
    skewed(monkeypatch, "safetensors", skew)
    for name in ("new.safetensors", "old.safetensors"):
        with pytest.raises(RunError, match=rf"on 1 examples of validation its outputs differ .* by up to {shown}"):
            digits.export(tmp_path / name, "safetensors", examples=1, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"] and old.read_text() == "old"


def test_a_difference_within_the_tolerance_is_allowed(digits, tmp_path, monkeypatch):
    skewed(monkeypatch, "safetensors", 3e-6)
    exported = digits.export(tmp_path / "new.safetensors", "safetensors", examples=1)
    assert exported.description["parity"]["largest_difference"] == pytest.approx(3e-6, rel=0.2)


def test_examples_with_another_choice_among_equal_scores_are_left_out(digits, monkeypatch, tmp_path):
    """At most one in twenty, of a model that chooses: ProbSparse attention picks tokens."""
    chosen = FORMATS["safetensors"]
    model = DIGITS["model"] | {"attention": {"num_heads": 2, "kind": "probsparse"}}
    chooses = fresh(DIGITS | {"model": model})

    def export(run, wrong):
        """A file whose outputs for the second example and more differ by 1."""

        def read(path):
            spec, function = chosen.read(path)
            skew = lambda outputs: outputs + (np.arange(len(outputs)) < wrong * (len(outputs) > 1))[:, None]  # noqa: E731
            return spec, lambda **arrays: skew(np.asarray(function(**arrays)))

        monkeypatch.setitem(formats.FORMATS, "safetensors", chosen._replace(read=read))
        return run.export(tmp_path / "a.safetensors", "safetensors", examples=21).description["parity"]

    for run, wrong in ((chooses, 2), (digits, 1)):
        with pytest.raises(RunError, match=r"its outputs differ from the run's by up to 1, and at most \d.*e-05"):
            export(run, wrong)
    parity = export(chooses, 1)
    assert parity["chosen_otherwise"] == 1 and parity["largest_difference"] <= parity["tolerance"]


@pytest.mark.parametrize("format", ["onnx", pytest.param("stablehlo", marks=pytest.mark.slow)])
def test_a_model_of_bfloat16_is_held_against_its_weights_in_float32(tmp_path, format):
    """In an ONNX file it computes in float32; as StableHLO it rounds as the run does."""
    run = fresh(DIGITS | {"model": DIGITS["model"] | {"dtype": "bfloat16"}})
    exact = make_experiment(parse_config(DIGITS), run.task.metadata).network
    exported = run.export(tmp_path / f"a.{format}", format, examples=20)
    images, parity = run.task.examples("validation").load()["image"][:20], exported.description["parity"]
    of_exact = exact.apply(*run._variables, run.task.preprocess({"image": images}))[0]
    rounding = np.max(np.abs(np.asarray(run.predict(images)) - of_exact))
    assert parity["rounding"] == pytest.approx(rounding, rel=0.1) and rounding > 1e-4
    error = np.max(np.abs(exported.predict(images) - of_exact))
    assert error < 1e-5 if format == "onnx" else error == pytest.approx(rounding, rel=0.1)
    allowed = 1e-5 * max(1, np.abs(of_exact).max()) + (2 * rounding if format == "stablehlo" else 0)
    assert parity["tolerance"] == pytest.approx(allowed, rel=0.1)


@pytest.mark.parametrize(
    ("name", "format", "kind", "error"),
    [
        ("a.stablehlo", "stablehol", ConfigError, "--format=stablehol is no format: did you mean stablehlo"),
        ("a.tflite", "tflite", ConfigError, "--format=tflite is no format: .*choose from stablehlo, onnx, safetensors"),
        ("a.bin", "stablehlo", ConfigError, "a.bin must end in .stablehlo"),
        ("there.stablehlo", "stablehlo", ConfigError, "there.stablehlo exists; choose another --out, or pass --overw"),
        (
            "there.stablehlo/a.stablehlo",
            "stablehlo",
            RunError,
            r"cannot be written: File exists \(.*there.stablehlo\); choose another",
        ),
    ],
)
def test_where_no_file_can_be_written(digits, tmp_path, name, format, kind, error):
    (tmp_path / "there.stablehlo").write_text("there")
    with pytest.raises(kind, match=error):
        digits.export(tmp_path / name, format)
    assert [path.name for path in tmp_path.iterdir()] == ["there.stablehlo"]


def test_overwriting_replaces_both_files(digits, files, tmp_path):
    for name in ("digits.safetensors", "digits.safetensors.json"):
        (tmp_path / name).write_text("old")
    digits.export(tmp_path / "digits.safetensors", "safetensors", examples=20, overwrite=True)
    assert (tmp_path / "digits.safetensors").read_bytes() == (files / "digits.safetensors").read_bytes()
    assert load_exported(tmp_path / "digits.safetensors").description["step"] == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (
            np.zeros((2, 8, 8), np.uint8),
            r"image of shape \(2, 8, 8\) \(uint8\) does not fit .* \(batch, 8, 8, 1\) of u",
        ),
        (np.zeros((2, 8, 8, 1), np.float32), r"\(float32\) does not fit the model, which takes .* of uint8"),
        (np.full((2, 8, 8, 1), 256), "image has values from 256 to 256, beyond its type, uint8"),
        (np.zeros((0, 8, 8, 1), np.uint8), "give at least one example"),
        ({"picture": np.zeros((2, 8, 8, 1), np.uint8)}, "the model takes image, not picture"),
    ],
)
def test_examples_that_do_not_fit(files, raw, error):
    with pytest.raises(ConfigError, match=error):
        load_exported(files / "digits.stablehlo").predict(raw)


def rewritten(files, folder, name, content):
    """A file with this content and a description that fits it."""
    path = folder / name
    path.write_bytes(content)
    description = json.loads((files / f"{name}.json").read_text()) | formats.fingerprint(path)
    (folder / f"{name}.json").write_text(json.dumps(description))
    return path


@pytest.mark.parametrize("suffix", [".stablehlo", ".onnx", ".safetensors"])
def test_a_damaged_file_is_not_read(files, tmp_path, suffix):
    whole = (files / f"digits{suffix}").read_bytes()
    description = (files / f"digits{suffix}.json").read_text()
    path = tmp_path / f"digits{suffix}"
    with pytest.raises(RunError, match=r"is not a file; python -m flaxformer_lab.export writes one"):
        load_exported(path)
    path.write_bytes(whole)
    with pytest.raises(RunError, match=r"digits\.\w+\.json is missing or damaged"):
        load_exported(path)
    path.with_name(f"{path.name}.json").write_text(description)
    for content in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(RunError, match="its size or SHA-256 is another; export it again"):
            load_exported(path)
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        with pytest.raises(RunError, match="is damaged, or no"):
            load_exported(rewritten(files, tmp_path, path.name, content))
    with pytest.raises(ConfigError, match=r"is no exported model; it ends in \.stablehlo, \.onnx or \.safetensors"):
        load_exported(path.with_suffix(".pkl"))


def test_a_program_that_leaves_xla_is_not_run(files, tmp_path):
    shape = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    outside = jax.export.export(jax.jit(lambda image: jnp.linalg.qr(image)[0]), platforms=["cpu"])(image=shape)
    assert "custom_call" in outside.mlir_module()
    with pytest.raises(RunError, match="calls a function outside of XLA, which no file of the lab does; it is not run"):
        load_exported(rewritten(files, tmp_path, "digits.stablehlo", bytes(outside.serialize())))
    nameless = jax.export.export(jax.jit(lambda image: image))(shape)
    with pytest.raises(RunError, match="takes 1 arguments without a name, so the lab did not write it"):
        load_exported(rewritten(files, tmp_path, "digits.stablehlo", bytes(nameless.serialize())))


def test_weights_that_are_not_those_of_their_config_are_refused(files, tmp_path):
    with safe_open(files / "digits.safetensors", "numpy") as file:
        header = json.loads(file.metadata()["flaxformer_lab"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    trials = [
        (arrays | {"head.bias": np.zeros(3, np.float32)}, header, r"head.bias of shape \(10,\), the file has \(3,\)"),
        (arrays | {"more": np.zeros(3, np.float32)}, header, r"more of shape None, the file has \(3,\)"),
        (arrays, header | {"config": header["config"] | {"code": "import os"}}, "unknown key code"),
        (arrays, header | {"metadata": {}}, "KeyError: 'image_shape'"),
        (arrays, {}, "KeyError: 'config'"),
        (arrays, [], "TypeError"),
    ]
    for content, described, error in trials:
        save_file(content, tmp_path / "weights", {"flaxformer_lab": json.dumps(described)})
        with pytest.raises(RunError, match=rf"is damaged.*{error}"):
            load_exported(rewritten(files, tmp_path, "digits.safetensors", (tmp_path / "weights").read_bytes()))


def test_hooks_are_part_of_a_program_and_not_of_weights(digits, files, images, tmp_path):
    hooked = digits.with_hooks({"blocks.0.output": lambda y: -2 * y})
    hooked.export(tmp_path / "hooked.stablehlo", examples=3)
    outputs = load_exported(tmp_path / "hooked.stablehlo").predict(images)
    np.testing.assert_allclose(outputs, hooked.predict(images), rtol=0, atol=1e-5)
    assert np.abs(outputs - digits.predict(images)).max() > 1e-3
    with pytest.raises(RunError, match="its outputs differ from the run's"):
        hooked.export(tmp_path / "hooked.safetensors", "safetensors", examples=1)


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_writes_into_the_runs_folder(digits, run_command):
    code, out, _ = run_command("flaxformer_lab.export", f"--workdir={digits.workdir}", "--examples=20")
    assert code == 0
    said = json.loads(out[-1])
    path = digits.workdir / "export" / "run-1.stablehlo"
    assert said["path"] == str(path) and said["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    shown = "\n".join(out)
    assert "uint8 [batch, 8, 8, 1]" in shown and "checked on 20 examples of validation" in shown
    assert f"{said['parity']['metrics']['loss']:.6f}" in shown
    assert load_run(digits.workdir).step == 1  # the folder is still a run
    code, _, err = run_command("flaxformer_lab.export", f"--workdir={digits.workdir}")
    assert code == 2 and "run-1.stablehlo exists; choose another --out, or pass --overwrite" in err[0]


def test_a_metric_that_is_nan_is_null_in_what_is_printed_and_written(digits, run_command, tmp_path, monkeypatch):
    compute = metrics.compute
    monkeypatch.setattr(metrics, "compute", lambda states: compute(states) | {"accuracy": float("nan")})
    out = tmp_path / "file.stablehlo"
    code, lines, err = run_command("flaxformer_lab.export", f"--workdir={digits.workdir}", f"--out={out}")
    assert code == 0, err

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for text in (lines[-1], (tmp_path / "file.stablehlo.json").read_text()):
        parity = json.loads(text, parse_constant=refuse)["parity"]
        assert parity["metrics"]["accuracy"] is None and parity["lost"] is None and parity["metrics"]["loss"] > 0


def test_what_the_command_refuses(digits, run_command, tmp_path):
    for arguments, code, error in [
        (["--step=7"], 4, "7"),
        (["--format=tensors"], 2, "--format=tensors is no format: did you mean safetensors"),
        (["--config.model.width=8"], 2, "a checkpoint keeps the config that it was trained with"),
    ]:
        found, _, err = run_command("flaxformer_lab.export", f"--workdir={digits.workdir}", *arguments)
        assert found == code and error in err[0]
    (tmp_path / "empty").mkdir()
    code, _, err = run_command("flaxformer_lab.export", f"--workdir={tmp_path / 'empty'}")
    assert code == 4 and "has no config.json, so it is no run" in err[0]
