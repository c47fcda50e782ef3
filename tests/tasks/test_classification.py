import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.task_config import ImageClassificationConfig, TabularClassificationConfig
from flaxformer_lab.tasks import SPLITS, classification, make_task

FACTS = {"image_shape": [8, 8, 1], "num_classes": 10}


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
    with pytest.raises(ConfigError, match=r"task\.dataset=lab_speeches has no image and no label .*it has"):
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
    raw = make_task(TabularClassificationConfig(dataset=dataset, standardised=False), task.metadata)
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
