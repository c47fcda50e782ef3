"""Two marks: a second statement of the task that reads the pixels alone, and its theorems."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.task_config import TwoMarksConfig
from flaxformer_lab.tasks import make_task

ROWS, COLUMNS, DISTANCE = 2, 5, 3
CLOCKWISE = [(0, 0), (0, 1), (1, 1), (1, 0)]


def drawn(relation, number=64):
    task = make_task(TwoMarksConfig(rows=ROWS, columns=COLUMNS, distance=DISTANCE, relation=relation))
    examples = {"index": jnp.arange(number), "example_weight": jnp.ones(number)}
    keys = jax.random.split(jax.random.key(0), number)
    batch = jax.jit(lambda *given: task.prepare(*given, training=True))(examples, keys)
    return jax.tree.map(np.asarray, batch)


@pytest.mark.parametrize(("relation", "first", "second"), [("alike", 0, 2), ("order", 1, 3)])
def test_the_class_is_how_the_right_kind_follows_the_left_one(relation, first, second):
    batch, places, kinds = drawn(relation), set(), set()
    for image, label, objects in zip(batch["inputs"], batch["targets"], batch["object_pixels"], strict=True):
        cells = image.reshape(ROWS, 2, COLUMNS, 2).swapaxes(1, 2)
        (row, other), (left, right) = np.nonzero(np.abs(cells).sum(axis=(2, 3)))
        assert row == other and right - left == DISTANCE
        found = [CLOCKWISE.index(tuple(np.argwhere(cells[row, at] == 1)[0])) for at in (left, right)]
        assert np.sum(cells[row, left] == -1) == np.sum(cells[row, right] == -1) == 3
        assert (found[1] - found[0]) % 4 == (second if label else first)
        np.testing.assert_array_equal(objects, np.abs(image[..., 0]))
        places.add((row, left))
        kinds.add((found[0], int(label)))
    assert len(places) == ROWS * (COLUMNS - DISTANCE) and len(kinds) == 8


def test_no_sum_of_the_marks_is_right_in_more_than_three_of_four_cases():
    """Over all tables a, b of few values: sign(a[left] + b[right]) against the class, for each relation."""
    tables = list(itertools.product((-1.5, -0.5, 0.5, 1.5), repeat=4))
    for shift in (0, 1):  # alike, order
        best = 0.0
        for a in tables[::3]:
            sums = np.array(a)[None, :, None] + np.array(tables)[:, None, :]  # [table b, left, right]
            right = [sums[:, left, (left + shift + 2 * label) % 4] for left in range(4) for label in range(2)]
            wanted = np.array([1 if label else -1 for _ in range(4) for label in range(2)])
            best = max(best, float(np.max(np.mean(np.sign(np.stack(right, 1)) == wanted, axis=1))))
        assert best == 0.75


@pytest.mark.parametrize(
    ("model", "bound"),
    [
        ({"name": "cnn_2d", "depth": 1}, 0.75),  # sees 2 cells each way, 4 apart
        ({"name": "cnn_2d", "depth": 2}, None),
        ({"name": "transformer"}, None),
        ({"name": "transformer", "attention": {"kind": "off"}}, 0.75),
        ({"name": "resnet", "depths": (1,)}, 0.75),
        ({"name": "resnet", "depths": (1,), "norm": {"kind": "groupnorm"}}, None),  # one sum over the whole image
    ],
    ids=str,
)
def test_the_bound_holds_for_what_does_not_see_both(model, bound):
    task = make_task(TwoMarksConfig(distance=5))
    found = task.bound(parse_config({"model": model}).model)
    assert (found and found.value) == bound


def pairs(shape, kinds, distance):
    """An image for each pair of these kinds: the left mark in the first column of cells, the right one so far on."""
    images = np.zeros((len(kinds) ** 2, *shape, 1), np.float32)
    for number, (left, right) in enumerate(itertools.product(kinds, repeat=2)):
        for column, kind in ((0, left), (distance, right)):
            images[number, 0:2, 2 * column : 2 * column + 2, 0] = -1
            row, place = CLOCKWISE[kind]
            images[number, row, 2 * column + place, 0] = 1
    return jnp.asarray(images)


def test_a_convolution_that_sees_one_mark_at_a_time_adds_what_it_sees():
    """The logits of a pair are a sum over its marks: exchanging the right marks of two images changes no sum."""
    task = make_task(TwoMarksConfig(rows=ROWS, columns=8, distance=5))
    network = task.network(parse_config({"model": {"name": "cnn_2d", "depth": 1, "width": 8}}).model)
    params, state = network.init(jax.random.key(0))
    images = pairs((2 * ROWS, 16), kinds=(0, 2), distance=5)
    same, different, other, alike = np.asarray(jax.jit(network.apply)(params, state, images)[0])
    assert np.abs(same - different).max() > 1e-4
    np.testing.assert_allclose(same + alike, different + other, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "patch_size", "bound"),
    [
        (1, 1, 0.75),  # sees 2 tokens each way; the end of a row of 32 pixels is 7 before the next row's other mark
        (2, 1, None),
        (5, 1, None),
        (2, 2, 0.75),  # a row of marks is a row of patches: 12 apart
        (3, 2, None),
    ],
)
def test_a_model_of_a_sequence_sees_the_next_row_near_the_end_of_one(depth, patch_size, bound):
    task = make_task(TwoMarksConfig(rows=2, columns=16, distance=12, patch_size=patch_size))
    found = task.bound(parse_config({"model": {"name": "cnn_1d", "depth": depth}}).model)
    assert (found and found.value) == bound
    on_grid = task.bound(parse_config({"model": {"name": "cnn_2d", "depth": depth}}).model)
    assert (on_grid is not None) == (4 * depth < (23 if patch_size == 1 else 12))


def test_a_convolution_over_a_sequence_of_pixels_joins_marks_of_two_rows():
    """What the bound would deny: logits of a pair that are no sum over its marks."""
    task = make_task(TwoMarksConfig(rows=1, columns=4, distance=3, patch_size=1))
    model = parse_config({"model": {"name": "cnn_1d", "depth": 1, "width": 8, "norm": {"kind": "off"}}}).model
    assert task.bound(model) is None
    network = task.network(model)
    params, state = network.init(jax.random.key(0))
    images = pairs((2, 8), kinds=(1, 3), distance=3)
    same, different, other, alike = np.asarray(jax.jit(network.apply)(params, state, images)[0])
    assert np.abs(same + alike - different - other).max() > 1e-4


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"columns": 4, "distance": 4}, r"task\.distance=4 .* at most 3"),
        ({"patch_size": 3}, r"does not divide the 8 x 32"),
    ],
)
def test_what_cannot_be_drawn_is_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"task": {"name": "two_marks"} | knobs})
