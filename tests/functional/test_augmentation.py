"""Changes of training images against loops, and from which keys they follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import augmentation

IMAGES = np.random.default_rng(0).uniform(-0.9, 0.9, (32, 6, 8, 2)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(1), 32)
flipped, cropped = jax.jit(augmentation.flipped), jax.jit(augmentation.cropped, static_argnums=2)
cut_out, mixed = (jax.jit(each, static_argnums=2) for each in (augmentation.cut_out, augmentation.mixed))
BATCH = {"inputs": IMAGES, "targets": np.arange(32) % 10, "loss_weights": np.float32(np.arange(32) != 30)}


def test_half_of_the_images_are_mirrored():
    found = np.asarray(flipped(IMAGES, KEYS))
    mirrored = [np.array_equal(image, before[:, ::-1]) for image, before in zip(found, IMAGES, strict=True)]
    same = [np.array_equal(image, before) for image, before in zip(found, IMAGES, strict=True)]
    assert np.logical_xor(mirrored, same).all() and 6 <= sum(mirrored) <= 26


def test_a_square_is_cut_out_inside_of_each_image():
    found, places = np.asarray(cut_out(IMAGES, KEYS, 3)), set()
    for image, before in zip(found, np.asarray(IMAGES), strict=True):
        rows, columns = np.nonzero((image == 0).all(axis=-1))
        row, column = rows.min(), columns.min()
        expected = before.copy()
        expected[row : row + 3, column : column + 3] = 0
        np.testing.assert_array_equal(image, expected)
        places.add((row, column))
    assert {row for row, _ in places} == set(range(4)) and len({column for _, column in places}) > 3


def test_a_crop_is_a_part_of_the_image_stretched_linearly():
    """A ramp stays a ramp: its slope is the share of the image that is seen, its values lie inside of the image's."""
    ramp = np.broadcast_to(np.linspace(-1, 1, 8, dtype=np.float32)[None, None, :, None], IMAGES.shape)
    found = np.asarray(cropped(ramp, KEYS, 0.5))[:, 0, :, 0]
    slopes = np.diff(found, axis=1)[:, 2:5]
    np.testing.assert_allclose(slopes, np.broadcast_to(slopes[:, :1], slopes.shape), atol=1e-5)
    shares = slopes[:, 0] / (2 / 7)
    assert shares.min() >= 0.5 - 1e-5 and shares.max() <= 1 + 1e-5 and shares.max() - shares.min() > 0.2
    assert found.min() >= -1 - 1e-5 and found.max() <= 1 + 1e-5


def test_mixtures_are_of_neighbours_with_the_labels_by_their_shares():
    found = jax.device_get(mixed(BATCH, KEYS, 1.0))
    images, own = np.asarray(IMAGES), found["loss_weights"]
    for number in range(30):
        other = number + 1 if number % 2 == 0 else number - 1
        expected = own[number] * images[number] + (1 - own[number]) * images[other]
        np.testing.assert_allclose(found["inputs"][number], expected, atol=1e-5)
        assert found["other_targets"][number] == other % 10
    np.testing.assert_array_equal(found["inputs"][31], images[31])  # its neighbour is padding
    np.testing.assert_allclose(own + found["other_weights"], BATCH["loss_weights"], atol=1e-6)
    assert own[:30].min() < 0.2 and own[:30].max() > 0.8


def test_the_last_of_an_odd_number_is_not_mixed():
    odd = jax.tree.map(lambda leaf: leaf[:3], BATCH)
    found = jax.device_get(mixed(odd, KEYS[:3], 1.0))
    np.testing.assert_array_equal(found["inputs"][2], IMAGES[2])
    assert found["loss_weights"][2] == 1 and found["loss_weights"][0] < 1


CHANGES = {
    "flip": flipped,
    "crop": lambda images, keys: cropped(images, keys, 0.6),
    "cutout": lambda images, keys: cut_out(images, keys, 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_follows_from_the_key_of_the_image_alone(name):
    whole, others = CHANGES[name](IMAGES, KEYS), CHANGES[name](IMAGES, KEYS[::-1])
    assert not np.array_equal(whole, others)
    np.testing.assert_allclose(CHANGES[name](IMAGES[20:], KEYS[20:]), whole[20:], atol=1e-6)


def test_an_even_part_of_a_batch_is_mixed_as_in_the_whole():
    whole = jax.device_get(mixed(BATCH, KEYS, 1.0))
    part = mixed(jax.tree.map(lambda leaf: leaf[8:16], BATCH), KEYS[8:16], 1.0)
    for name, value in part.items():
        np.testing.assert_allclose(value, whole[name][8:16], atol=1e-6)


def test_nothing_changes_where_nothing_is_asked():
    images = jnp.asarray(IMAGES)
    assert augmentation.shifted(images, KEYS, 0) is images
    assert augmentation.cropped(images, KEYS, 1.0) is images
    assert augmentation.cut_out(images, KEYS, 0) is images
    batch = jax.tree.map(jnp.asarray, BATCH)
    assert augmentation.mixed(batch, KEYS, 0.0) is batch
