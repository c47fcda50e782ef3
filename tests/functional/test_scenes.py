"""Scenes: what is drawn is where the boxes say, and the knobs hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxformer_lab.functional.scenes import Items, _interpolation, draw_scene

# A filled rectangle with a margin of a different width at each side.
ITEM = np.zeros((1, 16, 16), np.float32)
ITEM[0, 2:13, 4:15] = 1
KNOBS = {"canvas": 48, "count": (1, 4), "size": 16.0, "scale": (0.5, 1.5), "overlap": 0.2, "clutter": 0, "noise": 0.0}
MARGINS = np.array([4, 2, 15, 13], np.float32) / 16


@pytest.fixture(scope="module")
def scenes():
    items = Items(jnp.asarray(ITEM), jnp.asarray(MARGINS[None]), jnp.array([7]), 0, 1)
    draw = jax.jit(jax.vmap(lambda key: draw_scene(key, items, **KNOBS)))
    return jax.device_get(draw(jax.random.split(jax.random.key(0), 200)))


def test_bright_pixels_are_inside_of_the_boxes_and_fill_them(scenes):
    for image, boxes, valid in zip(scenes.image, scenes.boxes, scenes.valid, strict=True):
        expected = np.zeros(image.shape, bool)
        for x0, y0, x1, y1 in boxes[valid] * 48:
            expected[int(np.ceil(y0 + 0.5)) : int(y1 - 0.5), int(np.ceil(x0 + 0.5)) : int(x1 - 0.5)] = True
            assert min(x0, y0) >= 0 and max(x1, y1) <= 48 + 1e-4
        assert (image[expected] > 0.4).all()
        outside = np.ones(image.shape, bool)
        for x0, y0, x1, y1 in boxes[valid] * 48:
            outside[max(int(y0) - 1, 0) : int(y1) + 2, max(int(x0) - 1, 0) : int(x1) + 2] = False
        assert (image[outside] < 0.5).all()


def test_counts_scales_and_overlaps_are_within_the_knobs(scenes):
    numbers = scenes.valid.sum(axis=1)
    assert set(numbers) == {1, 2, 3, 4}
    assert (scenes.labels[scenes.valid] == 7).all() and (scenes.labels[~scenes.valid] == 0).all()
    widths = (scenes.boxes[..., 2] - scenes.boxes[..., 0])[scenes.valid] * 48 / 11
    assert 0.5 - 1e-4 < widths.min() < 0.55 and 1.45 < widths.max() < 1.5 + 1e-4
    shares = []
    for boxes, valid in zip(scenes.boxes, scenes.valid, strict=True):
        for i, a in enumerate(boxes[valid]):
            for b in boxes[valid][:i]:
                sizes = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
                shares.append(sizes.prod() / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))
    assert 0.1 < max(shares) <= 0.2 + 1e-4


def test_clutter_and_noise_change_the_image_and_no_box():
    items = Items(jnp.asarray(ITEM), jnp.asarray(MARGINS[None]), jnp.array([7]), 0, 1)
    draw = lambda **knobs: draw_scene(jax.random.key(3), items, **KNOBS | knobs)  # noqa: E731
    plain, crowded, noisy = draw(), draw(clutter=2), draw(noise=0.1)
    assert np.sum(crowded.image > plain.image + 0.5) > 20 and np.all(crowded.image >= plain.image)
    assert np.std((noisy.image - plain.image)[plain.image == 0]) > 0.04
    for other in (crowded, noisy):
        np.testing.assert_array_equal(other.boxes, plain.boxes)


@pytest.mark.parametrize("side", [24, 8])
def test_images_are_stretched_as_pillow_stretches_them(side):
    image = np.random.default_rng(0).uniform(size=(16, 16)).astype(np.float32)
    weights = np.asarray(_interpolation(jnp.zeros(1), jnp.array([side], jnp.float32), 16, side))[0]
    inner = slice(1, -1)  # at the edges Pillow takes what is there, a scene fades
    expected = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    np.testing.assert_allclose((weights @ image @ weights.T)[inner, inner], expected[inner, inner], atol=1e-5)
