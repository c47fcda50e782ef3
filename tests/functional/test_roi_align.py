"""RoIAlign against a loop over points, which is how torchvision computes it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.roi_align import roi_align


def at(features, y, x):
    """Linear interpolation as torchvision has it: 0 beyond a cell outside, the edge's value before that."""
    rows, columns, _ = features.shape
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return np.zeros(features.shape[2])
    y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
    above = features[y0, x0] * (1 - (x - x0)) + features[y0, x1] * (x - x0)
    below = features[y1, x0] * (1 - (x - x0)) + features[y1, x1] * (x - x0)
    return above * (1 - (y - y0)) + below * (y - y0)


@pytest.mark.parametrize("samples", [1, 2])
def test_every_cell_is_the_mean_of_its_points(samples):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(5, 7, 3)).astype(np.float32)
    corners = np.sort(generator.uniform(-3, 9, (6, 2, 2)), axis=1).reshape(6, 4).astype(np.float32)
    found = jax.jit(roi_align, static_argnums=(2, 3))(features, corners, 3, samples)
    assert found.shape == (6, 3, 3, 3)
    shares = (np.arange(3 * samples) + 0.5) / (3 * samples)
    for box, (x0, y0, x1, y1) in enumerate(corners):
        for row, column in itertools.product(range(3), repeat=2):
            places = itertools.product(*(shares[samples * k : samples * (k + 1)] for k in (row, column)))
            points = [at(features, y0 + (y1 - y0) * v - 0.5, x0 + (x1 - x0) * u - 0.5) for v, u in places]
            np.testing.assert_allclose(found[box, row, column], np.mean(points, axis=0), atol=1e-5)


def test_points_are_as_exact_under_bfloat16_as_under_float32():
    features = np.random.default_rng(2).integers(-8, 8, (9, 9, 2)).astype(np.float32)
    boxes = jnp.array([[1.37, 2.05, 4.11, 7.93]])
    wide, narrow = (roi_align(jnp.asarray(features, dtype), boxes, 4) for dtype in (jnp.float32, jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def test_products_are_of_float32():
    program = jax.make_jaxpr(lambda x, boxes: roi_align(x, boxes, 2))(np.ones((4, 4, 2), np.float32), np.ones((3, 4)))
    products = [each for each in program.eqns if each.primitive.name == "dot_general"]
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert products and all(each.params["precision"] == highest for each in products)


def test_a_box_around_one_cell_has_its_features():
    features = np.random.default_rng(1).normal(size=(4, 4, 2)).astype(np.float32)
    found = roi_align(jnp.asarray(features), jnp.array([[2.0, 1.0, 3.0, 2.0]]), 1, 1)
    np.testing.assert_allclose(found[0, 0, 0], features[1, 2], atol=1e-6)
