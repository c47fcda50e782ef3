import json
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tensorflow_datasets as tfds

from flaxformer_lab.config import parse_config
from flaxformer_lab.data.source import Source, open_split
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.task_config import (
    ImageClassificationConfig,
    TabularClassificationConfig,
    TabularRegressionConfig,
)
from flaxformer_lab.tasks import SPLITS, classification, make_task, tables

FACTS = {
    "feature": "image",
    "label": "label",
    "num_classes": 10,
    "image_shape": [8, 8, 1],
    "pixel_type": "uint8",
    "pixel_range": [0, 255],
}


def make(**changes):
    return make_task(ImageClassificationConfig(**changes), FACTS)


def prepare(task, examples, keys, *, training):
    return jax.jit(lambda examples, keys: task.prepare(examples, keys, training=training))(examples, keys)


def shapes(task, **model):
    params, _ = jax.eval_shape(task.network(TransformerConfig(width=8, depth=1, **model)).init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in leaf_paths(params).items()}


@pytest.fixture(scope="module")
def stored():
    """64 images of digits as they are stored."""
    return open_split("lab_digits", "train").read(np.arange(64)) | {"example_weight": np.ones(64, np.float32)}


def test_the_facts_are_learnt_from_the_data():
    metadata = make_task(ImageClassificationConfig()).metadata
    assert metadata == FACTS and json.loads(json.dumps(metadata)) == metadata


def test_a_task_made_from_its_facts_alone_is_the_same(monkeypatch):
    seen = make_task(ImageClassificationConfig())
    monkeypatch.setattr(classification, "open_split", lambda *_: pytest.fail("the data was opened"))
    unseen = make_task(ImageClassificationConfig(), json.loads(json.dumps(seen.metadata)))
    assert shapes(unseen) == shapes(seen)
    assert unseen.input_spec(3) == seen.input_spec(3) == jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32)


def test_the_three_splits_are_different_data():
    task = make()
    first = {split: task.examples(split).read(np.arange(20))["image"].tobytes() for split in SPLITS}
    assert len(set(first.values())) == 3


def test_pixels_are_scaled_to_minus_one_to_one():
    image = np.zeros((2, 8, 8, 1), np.uint8)
    image[1] = 255
    image[1, 0, 0, 0] = 51
    examples = {"image": jnp.asarray(image), "label": jnp.array([3, 4]), "example_weight": jnp.ones(2)}
    batch = prepare(make(), examples, jax.random.split(jax.random.key(0), 2), training=True)
    np.testing.assert_array_equal(batch["inputs"][0], np.full((8, 8, 1), -1))
    np.testing.assert_allclose(batch["inputs"][1, 0, 0], 51 / 127.5 - 1, rtol=1e-6)
    assert batch["inputs"].max() == pytest.approx(1)
    assert batch["targets"].tolist() == [3, 4]


def moved(image, rows, columns):
    """The image with its content moved down and right; the edge fills the gap. Pixel by pixel."""
    result = np.empty_like(image)
    height, width = image.shape[:2]
    for row in range(height):
        for column in range(width):
            from_row, from_column = np.clip(row - rows, 0, height - 1), np.clip(column - columns, 0, width - 1)
            result[row, column] = image[from_row, from_column]
    return result


@pytest.mark.parametrize("shift", [1, 2])
def test_training_images_are_moved_by_at_most_shift_pixels(stored, shift):
    task, keys = make(shift=shift), jax.random.split(jax.random.key(1), 64)
    still = np.asarray(prepare(make(), stored, keys, training=False)["inputs"])
    now = np.asarray(prepare(task, stored, keys, training=True)["inputs"])
    allowed = [(rows, columns) for rows in range(-shift, shift + 1) for columns in range(-shift, shift + 1)]
    seen = set()
    for before, after in zip(still, now, strict=True):
        fitting = {move for move in allowed if moved(before, *move).tobytes() == after.tobytes()}
        assert fitting, "an image is none of its allowed moves"
        seen |= fitting if len(fitting) == 1 else set()
    assert {0, shift, -shift} <= {rows for rows, _ in seen} and {shift, -shift} <= {columns for _, columns in seen}


def test_images_stay_where_they_are_without_shift_and_in_evaluation(stored):
    keys = jax.random.split(jax.random.key(1), 64)
    expected = np.asarray(stored["image"], np.float32) / 127.5 - 1
    for shift, training in ((0, True), (0, False), (2, False)):
        inputs = prepare(make(shift=shift), stored, keys, training=training)["inputs"]
        np.testing.assert_allclose(inputs, expected, atol=1e-6)


def test_a_move_follows_from_the_key_of_the_image_alone(stored):
    task, keys = make(shift=2), jax.random.split(jax.random.key(1), 64)
    whole = np.asarray(prepare(task, stored, keys, training=True)["inputs"])
    half = prepare(task, jax.tree.map(lambda leaf: leaf[40:], stored), keys[40:], training=True)["inputs"]
    np.testing.assert_array_equal(half, whole[40:])
    others = prepare(task, stored, jax.random.split(jax.random.key(2), 64), training=True)["inputs"]
    assert not np.array_equal(others, whole)


def test_a_border_gives_room_in_which_evaluation_moves_images_too(stored):
    task, keys = make(border=2, evaluation_shift=2), jax.random.split(jax.random.key(1), 64)
    assert task.input_spec(3).shape == (3, 12, 12, 1) and task.raw_spec(3)["image"].shape == (3, 8, 8, 1)
    still, moves = np.asarray(prepare(task, stored, keys, training=True)["inputs"]), set()
    np.testing.assert_allclose(still[:, 2:-2, 2:-2], np.asarray(stored["image"], np.float32) / 127.5 - 1, atol=1e-6)
    assert np.all(still[:, :2] == -1) and np.all(still[:, :, -2:] == -1)
    now = np.asarray(prepare(task, stored, keys, training=False)["inputs"])
    for before, after in zip(still, now, strict=True):
        ways = [(row, column) for row in range(-2, 3) for column in range(-2, 3)]
        moves |= {way for way in ways if np.array_equal(np.roll(before, way, axis=(0, 1)), after)}
    assert len(moves) > 15  # of 25
    np.testing.assert_allclose(task.preprocess(stored), still, atol=1e-6)  # what a user gives is not moved


def test_training_takes_the_first_examples_alone():
    few, all_ = make(training_examples=100), make()
    assert [few.examples(split).number for split in SPLITS] == [100, 300, 300]
    rows = np.array([0, 99])
    np.testing.assert_array_equal(few.examples("train").read(rows)["image"], all_.examples("train").read(rows)["image"])
    with pytest.raises(DataError, match=r"has 1197 examples, not 1198; ask for as many at most"):
        make(training_examples=1198).examples("train")


def test_training_images_pass_through_every_change_that_is_asked_for(stored):
    keys, changes = jax.random.split(jax.random.key(1), 64), {"flip": True, "crop": 0.5, "cutout": 2, "mixup": 0.5}
    plain = np.asarray(prepare(make(), stored, keys, training=True)["inputs"])
    everything = make(**changes)
    for knob, value in changes.items():
        one = prepare(make(**{knob: value}), stored, keys, training=True)
        assert not np.array_equal(one["inputs"], plain), knob
    np.testing.assert_allclose(prepare(everything, stored, keys, training=False)["inputs"], plain, atol=1e-6)


def test_the_loss_of_a_mixture_is_that_of_both_labels_by_their_shares():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 10)), jnp.float32)
    own, other, share = np.array([1, 2, 3]), np.array([2, 1, 3]), np.array([0.25, 0.75, 1.0], np.float32)
    batch = {"targets": own, "loss_weights": share, "other_targets": other, "other_weights": 1 - share}
    metrics = make().loss_and_metrics(logits, jax.tree.map(jnp.asarray, batch))
    logs = np.asarray(jax.nn.log_softmax(logits))
    expected = -sum(share[n] * logs[n, own[n]] + (1 - share[n]) * logs[n, other[n]] for n in range(3))
    np.testing.assert_allclose(metrics["loss"].total, expected, rtol=1e-5)
    assert metrics["loss"].weight == metrics["accuracy"].weight == 3


@pytest.mark.parametrize(("stem", "patch_size"), [("convolutions", 1), ("convolutions", 4), ("pooling", 4)])
def test_a_stem_makes_as_many_tokens_as_there_are_patches(stem, patch_size):
    network = make(stem=stem, patch_size=patch_size).network(TransformerConfig(width=8, depth=1))
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    assert jax.eval_shape(network.embed, params, state, images).shape == (2, (8 // patch_size) ** 2, 8)


def test_the_stem_of_convolutions_is_what_its_parts_are(draw):
    """Two halvings by 3 x 3 windows whose features double, each with LayerNorm and GELU, and a dense map."""
    network = make(stem="convolutions", patch_size=4).network(TransformerConfig(width=8, depth=0, position="off"))
    params = draw(network.shapes[0])
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    p = {path: np.asarray(leaf, np.float64) for path, leaf in leaf_paths(params).items()}
    x = images.astype(np.float64)
    for layer in range(2):
        size = x.shape[1] // 2
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        name, y = f"embedding.stem.convolutions.{layer}.map", np.zeros((1, size, size, 4 * (layer + 1)))
        for row, column in np.ndindex(size, size):
            window = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].reshape(-1)
            y[0, row, column] = window @ p[f"{name}.kernel"] + p[f"{name}.bias"]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        y = y * p[f"embedding.stem.norms.{layer}.scale"] + p[f"embedding.stem.norms.{layer}.bias"]
        x = y * scipy.stats.norm.cdf(y)
    x = x.reshape(1, 4, 8) @ p["embedding.stem.output.kernel"] + p["embedding.stem.output.bias"]
    found = jax.jit(lambda params, images: network.embed(params, {}, images))(params, images)
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-4)


def test_uniform_logits_lose_the_log_of_the_number_of_classes():
    batch = {"targets": jnp.arange(4), "loss_weights": jnp.array([1.0, 1.0, 0.5, 0.0])}
    measured = make().loss_and_metrics(jnp.full((4, 10), 3.0), batch)
    total, weight = measured["loss"]
    assert weight == 2.5
    np.testing.assert_allclose(total / weight, math.log(10), rtol=1e-6)


def test_accuracy_counts_the_right_answers_by_weight():
    logits = jnp.eye(4, 10) * 5
    batch = {"targets": jnp.array([0, 1, 9, 9]), "loss_weights": jnp.array([1.0, 0.25, 2.0, 0.0])}
    total, weight = make().loss_and_metrics(logits, batch)["accuracy"]
    assert (float(total), float(weight)) == (1.25, 3.25)


@pytest.mark.parametrize(("patch_size", "tokens", "features"), [(1, 64, 1), (2, 16, 4), (4, 4, 16), (8, 1, 64)])
def test_patches_are_the_tokens(patch_size, tokens, features):
    found = shapes(make(patch_size=patch_size))
    assert found["body.position"] == (tokens, 8)
    assert found["embedding.projection.kernel"] == (features, 8)
    assert found["head.kernel"] == (8, 10)


def test_a_class_token_is_one_more_token():
    with_token, without = shapes(make(pooling="class_token")), shapes(make())
    assert with_token["body.position"] == (17, 8) and without["body.position"] == (16, 8)
    assert with_token["embedding.class_token"] == (8,) and "embedding.class_token" not in without


@pytest.mark.parametrize("patch_size", [3, 5, 16])
def test_a_patch_that_does_not_divide_the_image_is_refused(patch_size):
    with pytest.raises(ConfigError, match=rf"patch_size={patch_size} does not divide the 8 x 8 .* 1, 2, 4, 8$"):
        make(patch_size=patch_size)


def test_a_data_set_without_images_is_refused():
    with pytest.raises(
        ConfigError, match=r"task\.dataset=lab_speeches has no image of fixed shape.* it has year, speaker, party, text"
    ):
        make_task(ImageClassificationConfig(dataset="lab_speeches"))


# ------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize(("dataset", "columns", "classes"), [("lab_wine", 13, 3), ("lab_breast_cancer", 30, 2)])
def test_standardised_columns_have_mean_0_and_deviation_1_in_training(dataset, columns, classes):
    task = make_task(TabularClassificationConfig(dataset=dataset))
    assert json.loads(json.dumps(task.metadata)) == task.metadata and task.metadata["num_classes"] == classes
    train = task.examples("train")
    rows = train.read(np.arange(train.number)) | {"example_weight": np.ones(train.number, np.float32)}
    keys = jax.random.split(jax.random.key(0), train.number)
    inputs = np.asarray(prepare(task, rows, keys, training=True)["inputs"])
    assert inputs.shape == (train.number, columns)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(inputs.std(axis=0), 1, atol=1e-4)
    raw = make_task(TabularClassificationConfig(dataset=dataset, scaling="none"), task.metadata)
    np.testing.assert_array_equal(prepare(raw, rows, keys, training=True)["inputs"], rows["columns"])
    assert rows["columns"].std(axis=0).max() / rows["columns"].std(axis=0).min() > 1000


def test_other_rows_are_scaled_as_the_training_rows_were():
    task = make_task(TabularClassificationConfig(), {"num_classes": 2, "mean": [1.0, 2.0], "spread": [1.0, 4.0]})
    rows = {"columns": jnp.array([[2.0, 10.0]]), "label": jnp.array([1]), "example_weight": jnp.ones(1)}
    batch = prepare(task, rows, jax.random.split(jax.random.key(0), 1), training=False)
    assert batch["inputs"].tolist() == [[1.0, 2.0]]
    assert task.input_spec(3) == jax.ShapeDtypeStruct((3, 2), jnp.float32)


def test_columns_are_the_tokens():
    found = shapes(make_task(TabularClassificationConfig(), {"num_classes": 2, "mean": [0.0] * 5, "spread": [1.0] * 5}))
    assert found["embedding.directions"] == found["embedding.offsets"] == found["body.position"] == (5, 8)
    assert found["head.kernel"] == (8, 2)


def test_a_data_set_without_columns_is_refused():
    with pytest.raises(ConfigError, match=r"task\.dataset=lab_digits has no columns of fixed shape"):
        make_task(TabularClassificationConfig(dataset="lab_digits"))


# ------------------------------------------------------------------------------- what a data set may look like


def data_set(monkeypatch, splits, features=None, bytes_checked=2**28):
    """Makes `open_split` give sources with these arrays: {split: {feature: values}}."""

    class Rows(Sequence):
        def __init__(self, arrays):
            self._arrays = arrays

        def __len__(self):
            return len(next(iter(self._arrays.values())))

        def __getitem__(self, index):
            return {name: values[index] for name, values in self._arrays.items()}

        def __getitems__(self, indices):
            return [self[index] for index in indices]

    class Info(tfds.core.DatasetInfo):
        features, data_dir, metadata = None, "/nowhere", None

        def __init__(self, features):
            self.features = features

    def open_split(dataset, split):
        arrays = {name: np.asarray(values) for name, values in splits[split].items()}
        described = {name: tfds.features.Tensor(shape=x.shape[1:], dtype=x.dtype) for name, x in arrays.items()}
        return Source(f"{dataset}/1.0.0 {split}", Info(described | (features or {})), Rows(arrays))

    for module in (classification, tables):
        monkeypatch.setattr(module, "open_split", open_split)
    monkeypatch.setattr("flaxformer_lab.tasks.examples.CHECKED_BYTES", bytes_checked)


def digits_as(change, **others):
    """The first digits of training, with their images changed."""
    rows = open_split("lab_digits", "train").read(np.arange(64))
    return {"train": {"image": change(rows["image"]), "label": rows["label"]}, **others}


def inputs_of(task, split="train"):
    examples = task.examples(split)
    rows = examples.read(np.arange(examples.number)) | {"example_weight": np.ones(examples.number, np.float32)}
    return np.asarray(
        prepare(task, rows, jax.random.split(jax.random.key(0), examples.number), training=False)["inputs"]
    )


@pytest.mark.parametrize(
    ("change", "limits", "tolerance"),
    [
        (lambda x: x, [0, 255], 1e-6),
        (lambda x: x[..., 0], [0, 255], 1e-6),  # without an axis of channels
        (lambda x: x.astype(np.float32) / 255, [0, 1], 1e-6),
        (lambda x: x.astype(np.float64) / 255, [0, 1], 1e-6),
        (lambda x: x.astype(np.float32) / 127.5 - 1, [-1, 1], 1e-6),
        (lambda x: x.astype(np.uint16), [0, 255], 1e-6),
        (lambda x: x.astype(np.uint16) * 257, [0, 65535], 1e-6),
        (lambda x: x.astype(np.int32) * 16, [0, 4095], 0.01),
    ],
    ids=["uint8", "no channels", "float32", "float64", "-1..1", "uint16 of 8 bits", "uint16", "12 bits"],
)
def test_images_of_any_type_become_the_same_inputs(monkeypatch, stored, change, limits, tolerance):
    data_set(monkeypatch, digits_as(change))
    task = make_task(ImageClassificationConfig(dataset="own"))
    assert task.metadata["pixel_range"] == limits and task.metadata["image_shape"] == [8, 8, 1]
    np.testing.assert_allclose(inputs_of(task), stored["image"] / np.float32(127.5) - 1, atol=tolerance)
    (row,) = [value for what, value in task.facts() if what == "image"]
    assert row.endswith(f"{limits[0]} to {limits[1]} become -1 to 1") and row.startswith("8 x 8 x 1 ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float32), r"values of float32 from 0 to 255, and nothing says .* set task\.pixel_range"),
        (lambda x: x.astype(np.int16) - 100, r"values of int16 from -100 to 15., and nothing says .*pixel_range"),
    ],
)
def test_images_whose_scale_nothing_says_are_refused_unless_the_config_says_it(monkeypatch, stored, change, message):
    data_set(monkeypatch, digits_as(change))
    with pytest.raises(ConfigError, match=message):
        make_task(ImageClassificationConfig(dataset="own"))
    low = float(change(np.zeros(1, np.uint8))[0])
    task = make_task(ImageClassificationConfig(dataset="own", pixel_range=(low, low + 255)))
    np.testing.assert_allclose(inputs_of(task), stored["image"] / np.float32(127.5) - 1, atol=1e-6)


@pytest.mark.parametrize("text", ["1,0", "0", "0,1,2", "3,3"])
def test_a_pixel_range_is_two_numbers_in_order(text):
    with pytest.raises(ConfigError, match=r"task\.pixel_range=.* must be two numbers, the lower one first, like 0,255"):
        parse_config({"task": {"pixel_range": text}})


def test_an_image_that_is_not_finite_is_named(monkeypatch):
    def spoil(images):
        scaled = images.astype(np.float32) / 255
        scaled[7, 3, 3] = np.nan
        return scaled

    data_set(monkeypatch, digits_as(spoil))
    with pytest.raises(DataError, match=r"own/1\.0\.0 train: image of row 7 has a value that is not finite"):
        make_task(ImageClassificationConfig(dataset="own"))


TABLE = {"numbers": np.arange(24.0).reshape(12, 2), "kind": np.arange(12) % 3}


def table_of(**changes):
    return {split: {name: values.copy() for name, values in (TABLE | changes).items()} for split in SPLITS}


@pytest.mark.parametrize("checked", [2**28, 0], ids=["small", "large"])
@pytest.mark.parametrize("value", [-1, 3])
def test_a_label_that_is_no_class_is_named_with_its_split_and_row(monkeypatch, value, checked):
    splits = table_of()
    splits["test"]["kind"][5] = value
    data_set(monkeypatch, splits, {"kind": tfds.features.ClassLabel(num_classes=3)}, bytes_checked=checked)
    task = make_task(TabularClassificationConfig(dataset="own"))
    inputs_of(task)  # the other splits are whole
    hint = "; -1 marks an example without a label" if value == -1 else ""
    with pytest.raises(DataError, match=rf"own/1\.0\.0 test: kind of row 5 is {value}, .* classes 0, 1, 2{hint}; take"):
        task.examples("test").load() if checked == 0 else task.examples("test")
    if checked == 0:
        with pytest.raises(DataError, match=rf"kind of row 5 is {value}"):
            task.examples("test").read(np.array([4, 5]))
        task.examples("test").read(np.array([4, 6]))


def test_features_are_found_by_their_types_or_named_where_several_fit(monkeypatch):
    data_set(monkeypatch, table_of())
    task = make_task(TabularClassificationConfig(dataset="own"))
    assert (task.metadata["feature"], task.metadata["label"], task.metadata["num_classes"]) == ("numbers", "kind", 3)
    data_set(monkeypatch, table_of(others=np.ones((12, 3)), year=np.arange(12)))
    for config, message in (
        ({}, r"several features that may be the columns; set task\.feature to one of numbers, others"),
        ({"feature": "numbers"}, r"several features that may be the label; set task\.label to one of kind, year"),
        ({"feature": "kind"}, r"task\.feature=kind is no columns of .*; choose from numbers, others"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_task(TabularClassificationConfig(dataset="own", **config))
    task = make_task(TabularClassificationConfig(dataset="own", feature="others", label="kind"))
    assert inputs_of(task).shape == (12, 3)
    with pytest.raises(DataError, match=r"year has 12 distinct values in 12 rows, so it is no class label"):
        make_task(TabularClassificationConfig(dataset="own", feature="others", label="year"))


def test_whole_numbers_are_classes_in_their_order(monkeypatch):
    data_set(monkeypatch, table_of(kind=np.array([5, 2, 9] * 4)))
    task = make_task(TabularClassificationConfig(dataset="own"))
    assert (task.metadata["num_classes"], task.metadata["classes"]) == (3, [2, 5, 9])
    assert ["classes of kind", "3 (2, 5, 9)"] in task.facts()
    rows = task.examples("train").read(np.arange(3)) | {"example_weight": np.ones(3, np.float32)}
    batch = prepare(task, rows, jax.random.split(jax.random.key(0), 3), training=False)
    assert batch["targets"].tolist() == [1, 0, 2]


def lacking(value, row=4, column=1, split="train"):
    splits = table_of()
    splits[split]["numbers"][row, column] = value
    return splits


@pytest.mark.parametrize(
    ("value", "split", "missing", "message"),
    [
        (np.nan, "train", "error", r"train: numbers\[1\] of row 4 is nan; set task\.missing=mean or indicator"),
        (np.nan, "test", "error", r"test: numbers\[1\] of row 4 is nan"),
        (-np.inf, "train", "mean", r"train: numbers\[1\] of row 4 is -inf; correct it"),
        (np.inf, "validation", "indicator", r"validation: numbers\[1\] of row 4 is inf; correct it"),
    ],
)
def test_a_value_that_is_not_finite_is_named_with_its_column_and_row(monkeypatch, value, split, missing, message):
    data_set(monkeypatch, lacking(value, split=split))
    with pytest.raises(DataError, match=message):
        make_task(TabularClassificationConfig(dataset="own", missing=missing)).examples(split)


@pytest.mark.parametrize("missing", ["mean", "indicator"])
@pytest.mark.parametrize("scaling", ["standard", "none"])
def test_missing_values_become_the_mean_of_the_training_rows(monkeypatch, missing, scaling):
    splits = lacking(np.nan)
    splits["test"]["numbers"][0] = np.nan
    splits["test"]["numbers"][1:] += 1000  # nothing is fitted to these
    data_set(monkeypatch, splits)
    task = make_task(TabularClassificationConfig(dataset="own", missing=missing, scaling=scaling))
    known = np.delete(TABLE["numbers"][:, 1], 4)
    assert task.metadata["mean"] == pytest.approx([11.0, known.mean()])
    assert task.metadata["spread"] == pytest.approx([TABLE["numbers"][:, 0].std(), known.std()])
    width = 2 + (missing == "indicator")  # of the second column, which alone lacks a value in training
    train, test = inputs_of(task), inputs_of(task, "test")
    assert train.shape == test.shape == (12, width) == task.input_spec(12).shape
    filled = np.zeros(2) if scaling == "standard" else np.array([11.0, known.mean()])
    assert train[4, 1] == pytest.approx(filled[1], abs=1e-6)
    np.testing.assert_allclose(test[0, :2], filled, atol=1e-6)
    if missing == "indicator":
        np.testing.assert_array_equal(train[:, 2], np.arange(12) == 4)
        np.testing.assert_array_equal(test[:, 2], np.arange(12) == 0)
    assert shapes(task)["body.position"] == (width, 8)


def test_a_column_without_any_value_is_refused(monkeypatch):
    splits = table_of(numbers=np.stack([np.arange(12.0), np.full(12, np.nan)], axis=1))
    data_set(monkeypatch, splits)
    with pytest.raises(DataError, match=r"numbers\[1\] has no value in any row; leave the column out"):
        make_task(TabularClassificationConfig(dataset="own", missing="mean"))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (slice(None), 3.0, r"own/1\.0\.0 train: kind is 3 in all training rows; there is nothing to learn"),
        (5, np.nan, r"own/1\.0\.0 train: kind of row 5 is nan; leave the row out"),
        (5, np.inf, r"own/1\.0\.0 train: kind of row 5 is inf; leave the row out"),
    ],
)
def test_a_number_that_cannot_be_learned_is_refused(monkeypatch, place, value, message):
    splits = table_of(kind=np.arange(12.0))
    data_set(monkeypatch, splits)
    metadata = make_task(TabularRegressionConfig(dataset="own")).metadata
    assert (metadata["target"], metadata["target_mean"]) == ("kind", 5.5)
    splits["train"]["kind"][place] = value
    with pytest.raises(DataError, match=message):
        make_task(TabularRegressionConfig(dataset="own"))


def test_rows_are_split_again_by_a_seed():
    """Other rows in splits of the same sizes, none twice, and means of the rows that train now."""
    own, again = (make_task(TabularClassificationConfig(split_seed=seed)) for seed in (None, 1))
    rows = {
        name: [task.examples(split).load()["columns"] for split in SPLITS]
        for name, task in (("own", own), ("again", again))
    }
    assert [len(part) for part in rows["again"]] == [len(part) for part in rows["own"]]
    every = {name: np.concatenate(parts) for name, parts in rows.items()}
    assert not np.array_equal(every["own"], every["again"])
    np.testing.assert_array_equal(*(np.sort(each, axis=0) for each in every.values()))
    np.testing.assert_allclose(again.metadata["mean"], rows["again"][0].mean(axis=0), rtol=1e-6)
