"""What detectors are trained on, against plain loops over objects and places."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from flaxformer_lab.functional import boxes as formulas
from flaxformer_lab.functional import detection as of

CLASSES, CAPACITY, GRID = 3, 4, (4, 4)


def objects(generator, images=16):
    """Padded objects, none or all of them in the first two images."""
    corners = np.sort(generator.uniform(0, 1, (images, CAPACITY, 2, 2)), axis=2).reshape(images, CAPACITY, 4)
    valid = generator.uniform(size=(images, CAPACITY)) < 0.6
    valid[0], valid[1] = False, True
    corners = np.where(valid[..., None], corners, 0).astype(np.float32)
    return of.Objects(corners, np.where(valid, generator.integers(0, CLASSES, valid.shape), 0), valid)


@pytest.fixture(scope="module")
def generator():
    return np.random.default_rng(0)


def iou(a, b):
    return float(formulas.iou(jnp.asarray(a[None]), jnp.asarray(b[None]))[0, 0])


# ---------------------------------------------------------------------------------------------- a set of queries

SET_LOSSES = jax.jit(jax.vmap(of.set_losses))


@pytest.fixture(scope="module")
def queries(generator):
    logits = generator.normal(size=(16, 6, CLASSES + 1)).astype(np.float32)
    return logits, generator.uniform(0.1, 0.9, (16, 6, 4)).astype(np.float32)


def test_losses_of_a_set_are_the_papers(generator, queries):
    truth = objects(generator)
    found = jax.device_get(SET_LOSSES(*queries, truth))
    for image, (logits, boxes) in enumerate(zip(*queries, strict=True)):
        shown = np.flatnonzero(truth.valid[image])
        probability, corners = special.softmax(logits, axis=-1), np.asarray(formulas.to_corners(jnp.asarray(boxes)))
        centres = np.asarray(formulas.to_centres(jnp.asarray(truth.boxes[image])))
        cost, general = np.zeros((len(shown), 6)), np.zeros((len(shown), 6))
        for (row, which), query in itertools.product(enumerate(shown), range(6)):
            l1 = np.abs(boxes[query] - centres[which]).sum()
            pair = (jnp.asarray(box[None]) for box in (corners[query], truth.boxes[image][which]))
            general[row, query] = formulas.giou(*pair)[0, 0]
            cost[row, query] = 5 * l1 - 2 * general[row, query] - probability[query, truth.labels[image][which]]
        rows, columns = optimize.linear_sum_assignment(cost)
        target = np.full(6, CLASSES)
        target[columns] = truth.labels[image][shown[rows]]
        weight = np.where(target == CLASSES, 0.1, 1)
        nats = -special.log_softmax(logits, axis=-1)[np.arange(6), target]
        number = max(len(shown), 1)
        assert found["class_loss"][image] == pytest.approx((nats * weight).sum() / weight.sum(), rel=1e-4)
        l1 = sum(np.abs(boxes[query] - centres[shown[row]]).sum() for row, query in zip(rows, columns, strict=True))
        assert found["l1_loss"][image] == pytest.approx(5 * l1 / number, rel=1e-4)
        assert found["giou_loss"][image] == pytest.approx(2 * (1 - general[rows, columns]).sum() / number, abs=1e-4)


def test_the_order_of_objects_and_of_padding_does_not_matter(generator, queries):
    truth = objects(generator)
    other = of.Objects(*(each[:, ::-1] for each in truth))
    for name, values in SET_LOSSES(*queries, truth).items():
        np.testing.assert_allclose(values, SET_LOSSES(*queries, other)[name], rtol=1e-4)


def test_the_gradient_moves_the_matched_query_alone_towards_its_object():
    truth = of.Objects(jnp.array([[0.2, 0.2, 0.4, 0.4]]), jnp.array([1]), jnp.array([True]))
    boxes = np.array([[0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]], np.float32)
    logits = np.zeros((2, CLASSES + 1), np.float32)

    def gradients(logits, boxes):
        towards = jax.grad(lambda boxes: sum(of.set_losses(logits, boxes, truth).values()))(boxes)
        return towards, jax.grad(lambda logits: of.set_losses(logits, boxes, truth)["class_loss"])(logits)

    gradient, pull = jax.device_get(jax.jit(gradients)(logits, boxes))
    assert not np.any(gradient[0]) and gradient[1, 0] > 0 and gradient[1, 1] > 0
    assert pull[1, 1] < 0 and pull[0, CLASSES] < 0 and pull[1, CLASSES] > 0


# ---------------------------------------------------------------------------------------------- a grid of places


def test_every_object_has_a_place_and_each_place_the_smallest_of_its_own(generator):
    truth = objects(generator)
    targets = jax.jit(jax.vmap(functools.partial(of.place_targets, grid=GRID)))
    chosen, has = jax.device_get(targets(truth))
    for image in range(16):
        for place, (row, column) in enumerate(itertools.product(range(4), range(4))):
            x, y = (column + 0.5) / 4, (row + 0.5) / 4
            own = []
            for which in np.flatnonzero(truth.valid[image]):
                x0, y0, x1, y1 = truth.boxes[image, which]
                away = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) * 4
                if away <= 0.5 or (x0 < x < x1 and y0 < y < y1 and away < 1.5):
                    own.append(((x1 - x0) * (y1 - y0), which))
            assert has[image, place] == bool(own)
            if own:
                assert chosen[image, place] == min(own)[1]
    alone = of.Objects(truth.boxes[:, :1], truth.labels[:, :1], truth.valid[:, :1])
    assert np.array_equal(np.any(targets(alone)[1], 1), alone.valid[:, 0])


def test_the_true_code_of_a_place_leads_to_its_box():
    box = np.array([[0.3, 0.1, 0.6, 0.9]], np.float32)
    points = np.asarray(jax.jit(of.grid_points, static_argnums=(0, 1))(2, 4))
    code = np.concatenate([(np.array([[0.45, 0.5]]) - points) * [4, 2], np.log(np.full((8, 2), [0.3 * 4, 0.8 * 2]))], 1)
    found = jax.jit(of.place_boxes, static_argnums=1)(code.astype(np.float32), (2, 4))
    np.testing.assert_allclose(found, np.repeat(box, 8, 0), atol=1e-5)


def test_focal_loss_is_the_papers():
    logits, target = jnp.array([-2.0, 0.5, 3.0]), jnp.array([1.0, 0.0, 1.0])
    p = special.expit(np.asarray(logits))
    expected = [
        -0.25 * (1 - p[0]) ** 2 * np.log(p[0]),
        -0.75 * p[1] ** 2 * np.log(1 - p[1]),
        -0.25 * (1 - p[2]) ** 2 * np.log(p[2]),
    ]
    np.testing.assert_allclose(of.focal(logits, target), expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------ anchors and proposals

ANCHORS = np.asarray(of.grid_anchors((2, 2), (8.0, 16.0), (1.0, 4.0), (32, 64)))


def test_anchors_have_their_areas_and_ratios():
    assert ANCHORS.shape == (16, 4)
    pixels = ANCHORS * [64, 32, 64, 32]
    width, height = pixels[:, 2] - pixels[:, 0], pixels[:, 3] - pixels[:, 1]
    np.testing.assert_allclose(np.sqrt(width * height), [8, 8, 16, 16] * 4, rtol=1e-5)
    np.testing.assert_allclose(height / width, [1, 4] * 8, rtol=1e-5)
    np.testing.assert_allclose((pixels[:4, :2] + pixels[:4, 2:]) / 2, [[16, 8]] * 4, rtol=1e-5)


def test_losses_of_anchors_are_the_papers(generator):
    truth = objects(generator)
    scores = generator.normal(size=(16, 16)).astype(np.float32)
    code = generator.normal(size=(16, 16, 4)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda s, c, o: of.anchor_losses(s, c, jnp.asarray(ANCHORS), o)))(scores, code, truth)
    for image in range(16):
        shown = np.flatnonzero(truth.valid[image])
        overlap = np.array([[iou(anchor, truth.boxes[image, which]) for which in shown] for anchor in ANCHORS])
        overlap = overlap.reshape(16, len(shown))
        best = overlap.max(axis=1, initial=-1)
        positive = best >= 0.7
        for column in range(len(shown)):
            if overlap[:, column].max() > 0:
                positive |= overlap[:, column] == overlap[:, column].max()
        counted = positive | (best < 0.3)
        nats = np.where(positive, np.log1p(np.exp(-scores[image])), np.log1p(np.exp(scores[image])))
        assert found["proposal_class_loss"][image] == pytest.approx(nats[counted].mean(), rel=1e-4)
        errors = []
        for anchor in np.flatnonzero(positive):
            box = truth.boxes[image, shown[overlap[anchor].argmax()]]
            apart = np.abs(code[image, anchor] - formulas.encode(jnp.asarray(box), jnp.asarray(ANCHORS[anchor])))
            errors.append(np.where(apart < 1, apart**2 / 2, apart - 0.5).sum())
        assert found["proposal_box_loss"][image] == pytest.approx(np.mean(errors) if errors else 0, rel=1e-3, abs=1e-5)


def test_an_anchor_counts_by_the_chance_that_it_would_be_drawn():
    positive, negative = np.arange(600) < 200, np.arange(600) >= 300
    weights = np.asarray(jax.jit(of._expected_sample, static_argnums=2)(positive, negative, 256))
    np.testing.assert_allclose(weights, np.repeat([128 / 200, 0, 128 / 300], [200, 100, 300]), rtol=1e-5)


def test_losses_of_regions_are_the_papers(generator):
    truth, none = objects(generator), CLASSES
    near = truth.boxes[:, [0, 1, 2, 3, 0, 1]] + 0.03 * generator.normal(size=(16, 6, 4)).astype(np.float32)
    scores = np.where(generator.uniform(size=(16, 6)) < 0.2, -np.inf, 0.5).astype(np.float32)
    proposals = of.Detections(
        np.sort(near.reshape(16, 6, 2, 2), axis=2).reshape(16, 6, 4), scores, np.zeros((16, 6), int)
    )
    logits = generator.normal(size=(16, 6, none + 1)).astype(np.float32)
    code = generator.normal(size=(16, 6, none, 4)).astype(np.float32)
    found = jax.jit(jax.vmap(of.region_losses))(logits, code, proposals, truth)
    positives = 0
    for image in range(16):
        nats, errors = [], []
        for place in np.flatnonzero(scores[image] == 0.5):
            box, shown = proposals.boxes[image, place], np.flatnonzero(truth.valid[image])
            overlaps = [iou(box, truth.boxes[image, which]) for which in shown]
            label = none
            if overlaps and max(overlaps) >= 0.5:
                which = shown[int(np.argmax(overlaps))]
                label, positives = truth.labels[image, which], positives + 1
                target = formulas.encode(jnp.asarray(truth.boxes[image, which]), jnp.asarray(box))
                apart = np.abs(code[image, place, label] - np.asarray(target) * [10, 10, 5, 5])
                errors.append(np.where(apart < 1, apart**2 / 2, apart - 0.5).sum())
            nats.append(-special.log_softmax(logits[image, place])[label])
        assert found["class_loss"][image] == pytest.approx(np.mean(nats), rel=1e-4)
        assert found["box_loss"][image] == pytest.approx(np.mean(errors) if errors else 0, rel=1e-3, abs=1e-4)
    assert positives > 10


# ------------------------------------------------------------------------------------------------------ detections


def test_the_best_are_selected_and_the_rest_is_padding():
    select = jax.jit(of.select, static_argnames=("number", "nms"))
    boxes = np.array([[0.0, 0, 0.5, 0.5], [0, 0, 0.5, 0.45], [0.5, 0.5, 1.2, 1]], np.float32)
    scores, labels = np.array([0.3, 0.9, 0.6], np.float32), np.array([1, 1, 0])
    found = jax.device_get(select(boxes, scores, labels, number=4, nms=0.5))
    np.testing.assert_allclose(found.scores, [0.9, 0.6, -np.inf, -np.inf])
    np.testing.assert_array_equal(found.labels[:2], [1, 0])
    np.testing.assert_allclose(found.boxes[1], [0.5, 0.5, 1, 1])  # inside of the image
    whole = select(boxes, scores, labels, number=2, nms=None)
    np.testing.assert_allclose(whole.scores, [0.9, 0.6])
    kept = select(boxes, scores, np.array([0, 1, 0]), number=4, nms=0.5)  # of different classes
    np.testing.assert_allclose(kept.scores, [0.9, 0.6, 0.3, -np.inf])


def test_outputs_that_say_the_truth_are_decoded_to_it():
    box, options = jnp.array([[0.1, 0.2, 0.5, 0.6]]), {"number": 1, "nms": None}

    @jax.jit
    def detections():
        certain, whole = jnp.full((1, CLASSES + 1), -9.0).at[0, 2].set(9), jnp.array([[0.0, 0, 1, 1]])
        code = formulas.encode(box, whole)
        regions = jnp.zeros((1, CLASSES, 4)).at[0, 2].set(code[0] * jnp.array([10.0, 10, 5, 5]))
        proposals = of.Detections(whole, jnp.ones(1), jnp.zeros(1, jnp.int32))
        return (
            of.set_detections(certain, formulas.to_centres(box), **options),
            of.place_detections(certain[:, :-1], code, jnp.array([9.0]), (1, 1), **options),
            of.region_detections(certain, regions, proposals, **options),
        )

    for found in jax.device_get(detections()):
        np.testing.assert_allclose(found.boxes, box, atol=1e-5)
        assert found.labels[0] == 2 and found.scores[0] > 0.99
