"""Where a detector's second stage reads the features of a box, by the pixels that features stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.modules import detection
from flaxformer_lab.modules.detection import Backbone, RegionHead
from flaxformer_lab.modules.rngs import Rngs

PIXELS, GRID = 96, (12, 12)


@functools.cache
def pixels_of(cell):
    """(x, y): the centre of the pixels that the features of a cell (row, column) see, counted from an edge."""
    backbone = Backbone(1, 2, bias=False, dtype="float32", rngs=Rngs(0))
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, PIXELS, PIXELS, 1)), jnp.float32)
    squares = lambda image: jnp.sum(backbone(image).reshape(*GRID, -1)[cell] ** 2)  # noqa: E731
    rows, columns = np.nonzero(np.asarray(jax.jit(jax.grad(squares))(image))[0, :, :, 0])
    return [(each.min() + each.max() + 1) / 2 for each in (columns, rows)]


def regions_of(features, anchor_size):
    """The proposals of a head whose first stage moves no anchor, and the one vector that it reads in each."""
    options = {"grid": GRID, "anchors": ((anchor_size,), (1.0,)), "image": (PIXELS, PIXELS), "bias": True}
    head = RegionHead(2, 1, regions=144, size=1, rngs=Rngs(0), **options)
    head.proposing = lambda x: jnp.zeros((*x.shape[:-1], 5), x.dtype)
    head.deciding = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 4)))
    outputs = head(features.reshape(1, -1, 2))
    return np.asarray(outputs["proposals"]["boxes"][0]), outputs["logits"][0]


@pytest.mark.parametrize("size", [8.0, 20.0])
def test_a_region_has_the_features_that_stand_for_the_pixels_of_its_box(size):
    """Of features that say which pixels they stand for, the mean in a box is its centre."""
    x, y = pixels_of((6, 5))
    columns, rows = np.meshgrid(8 * (np.arange(12) - 5) + x, 8 * (np.arange(12) - 6) + y)
    boxes, found = regions_of(jnp.asarray(np.stack([columns, rows], axis=-1), jnp.float32), size)
    boxes = boxes * PIXELS
    within = np.all((boxes > 1) & (boxes < 88), axis=1)  # where there are features around
    assert within.sum() > 20
    np.testing.assert_allclose(found[within], (boxes[within, :2] + boxes[within, 2:]) / 2, atol=1e-3)


def test_boxes_stay_float32_under_bfloat16(monkeypatch):
    seen, align = [], detection.roi_align

    def spy(features, boxes, size):
        regions = align(features, boxes, size)
        seen.append((features.dtype, boxes.dtype, regions.dtype))
        return regions

    monkeypatch.setattr(detection, "roi_align", spy)
    regions_of(jnp.ones((*GRID, 2), jnp.bfloat16), 8.0)
    assert seen == [(jnp.bfloat16, jnp.float32, jnp.bfloat16)]
