"""Formulas for boxes against plain loops over pairs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import boxes as of


def random_boxes(generator, number, size=10):
    """Boxes on whole numbers, some of which touch, are equal or are empty."""
    corners = generator.integers(0, size, (number, 2, 2))
    low, high = corners.min(axis=1), corners.max(axis=1)
    return np.concatenate([low, high], axis=1).astype(np.float32)


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def overlap(a, b):
    """Intersection, union and the area of the box around both."""
    both = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    around = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    return both, area(a) + area(b) - both, around


def test_iou_and_giou_of_every_pair():
    generator = np.random.default_rng(0)
    a, b = random_boxes(generator, 20), random_boxes(generator, 30)
    found, general = jax.device_get(jax.jit(lambda a, b: (of.iou(a, b), of.giou(a, b)))(a, b))
    for i, j in itertools.product(range(20), range(30)):
        both, union, around = overlap(a[i], b[j])
        expected = both / union if union else 0
        assert found[i, j] == pytest.approx(expected, abs=1e-6)
        assert general[i, j] == pytest.approx(expected - ((around - union) / around if around else 0), abs=1e-6)


def test_giou_draws_a_box_that_is_apart_towards_the_other():
    """Where IoU is 0 and flat."""
    here, there = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32), np.array([[3.0, 0.0, 4.0, 1.0]], np.float32)

    @jax.jit
    def gradients(box, other):
        return (
            jax.grad(lambda box: of.iou(box, other).sum())(box),
            jax.grad(lambda box: of.giou(box, other).sum())(box),
            jax.grad(lambda box: of.giou(box, box).sum())(jnp.zeros((1, 4))),
        )

    flat, gradient, empty = jax.device_get(gradients(here, there))
    assert not np.any(flat) and gradient[0, 2] > 0 and np.all(np.isfinite(empty))


def test_codes_and_centres_lead_back():
    generator = np.random.default_rng(1)
    boxes, anchors = (np.sort(generator.uniform(0, 9, (2, 2, 50)), axis=0).reshape(4, 50).T for _ in range(2))
    boxes, anchors = jnp.asarray(boxes, jnp.float32), jnp.asarray(anchors, jnp.float32)
    np.testing.assert_allclose(of.to_corners(of.to_centres(boxes)), boxes, atol=1e-5)
    code = of.encode(boxes, anchors)
    np.testing.assert_allclose(of.decode(code, anchors), boxes, atol=1e-4)
    size, other = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(code[:, 2:], np.log(size / other), rtol=1e-3, atol=1e-5)
    shift = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    np.testing.assert_allclose(code[:, :2] * other, shift, atol=1e-4)


def suppress(boxes, scores, threshold, labels):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if scores[i] == -np.inf:
            continue
        rivals = [j for j in kept if labels is None or labels[i] == labels[j]]
        ious = [(both / union if union else 0) for both, union, _ in (overlap(boxes[i], boxes[j]) for j in rivals)]
        if all(each <= threshold for each in ious):
            kept.append(i)
    return np.isin(np.arange(len(boxes)), kept)


@pytest.mark.parametrize("by_label", [True, False])
def test_suppression_keeps_what_a_greedy_loop_keeps(by_label):
    run = jax.jit(jax.vmap(lambda *each: of.non_maximum_suppression(*each[:2], 0.5, each[2] if by_label else None)))
    generator = np.random.default_rng(2)
    boxes = np.stack([random_boxes(generator, 24, 6) for _ in range(20)])
    scores = generator.integers(0, 12, (20, 24)).astype(np.float32)  # with ties
    scores[scores == 3] = -np.inf
    labels = generator.integers(0, 3, (20, 24))
    found = run(boxes, scores, labels)
    assert found.any(axis=1).all() and not found.all()
    for row in range(20):
        expected = suppress(boxes[row], scores[row], 0.5, labels[row] if by_label else None)
        np.testing.assert_array_equal(found[row], expected)


def test_coverage_is_the_share_of_a_cell_inside_of_any_valid_box():
    boxes = jnp.array([[0.0, 0.0, 0.5, 0.25], [0.25, 0.0, 0.75, 0.5], [0.0, 0.0, 1.0, 1.0]])
    valid = jnp.array([True, True, False])
    found, pixels = jax.jit(lambda: (of.coverage(boxes, valid, 2, 4), of.coverage(boxes, valid, 8, 8, fine=1)))()
    np.testing.assert_array_equal(found, [[0.5, 1, 1, 0], [0, 0, 0, 0]])
    assert np.sum(pixels) == 4 * 4 + 2 * 2
