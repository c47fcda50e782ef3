"""What detectors are trained on, image by image, and how their outputs become detections.

Boxes are (x0, y0, x1, y1) in shares of the image unless said otherwise. `Objects` are padded to a capacity. Each loss
is a mean over one image, so the loss of a batch is a mean over images, however they are divided among devices.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab.functional.boxes import (
    area,
    decode,
    encode,
    giou,
    iou,
    non_maximum_suppression,
    to_centres,
    to_corners,
)
from flaxformer_lab.functional.matching import linear_sum_assignment

L1, GIOU = 5.0, 2.0  # weights of DETR's losses and costs of boxes, beside 1 of the class (Carion et al. 2020, A.4)
NO_OBJECT = 0.1  # weight of the class "no object" there
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al. 2017
ABSENT = -jnp.inf  # the score of a detection that is not there


class Objects(NamedTuple):
    """What is in an image."""

    boxes: Float[Array, "capacity 4"]
    labels: Int[Array, " capacity"]
    valid: Bool[Array, " capacity"]


class Detections(NamedTuple):
    """What a detector says is in an image, from the highest score down; a score of -inf: nothing."""

    boxes: Float[Array, "detections 4"]
    scores: Float[Array, " detections"]
    labels: Int[Array, " detections"]


Losses = dict[str, Float[Array, ""]]


def select(
    boxes: Float[Array, "number 4"],
    scores: Float[Array, " number"],
    labels: Int[Array, " number"],
    *,
    number: int,
    nms: float | None,
) -> Detections:
    """The highest scores, at most `number` (padded to it).

    nms: without those that overlap a better one of their class by more; looked for among 4 x `number`.
    """
    if nms is not None:
        kept = min(4 * number, len(scores))
        scores, order = jax.lax.top_k(scores, kept)
        boxes, labels = boxes[order], labels[order]
        scores = jnp.where(non_maximum_suppression(boxes, scores, nms, labels), scores, ABSENT)
    scores, order = jax.lax.top_k(scores, min(number, len(scores)))
    pad = number - len(scores)
    boxes, labels = jnp.pad(boxes[order], ((0, pad), (0, 0))), jnp.pad(labels[order], (0, pad))
    return Detections(jnp.clip(boxes, 0, 1), jnp.pad(scores, (0, pad), constant_values=ABSENT), labels)


def by_class(boxes: Float[Array, "number *classes 4"], scores: Float[Array, "number classes"]):
    """Boxes, scores and labels of every pair of a place and a class, as `select` takes them."""
    number, classes = scores.shape
    boxes = boxes if boxes.ndim == 3 else jnp.broadcast_to(boxes[:, None], (number, classes, 4))
    return boxes.reshape(-1, 4), scores.reshape(-1), jnp.tile(jnp.arange(classes, dtype=jnp.int32), number)


# ------------------------------------------------------------------------------------------ a set of queries


def set_matching(
    logits: Float[Array, "queries classes_and_none"], boxes: Float[Array, "queries 4"], objects: Objects
) -> Int[Array, " capacity"]:
    """The query of each object, of the least cost in all: class, L1 and GIoU (Carion et al. 2020, eq. 1 and 2).

    boxes: (centre x, centre y, width, height). The last class is "no object".
    """
    probability = jax.nn.softmax(logits)[:, objects.labels].T
    distance = jnp.sum(jnp.abs(to_centres(objects.boxes)[:, None] - boxes[None]), axis=-1)
    cost = L1 * distance - GIOU * giou(objects.boxes, to_corners(boxes)) - probability
    return linear_sum_assignment(jax.lax.stop_gradient(cost), objects.valid)


def set_losses(
    logits: Float[Array, "queries classes_and_none"], boxes: Float[Array, "queries 4"], objects: Objects
) -> Losses:
    """DETR's: the class of every query, and the boxes of those that `set_matching` gives an object."""
    queries, none = logits.shape[0], logits.shape[1] - 1
    query = set_matching(logits, boxes, objects)
    target = jnp.full(queries, none).at[jnp.where(objects.valid, query, queries)].set(objects.labels, mode="drop")
    weight = jnp.where(target == none, NO_OBJECT, 1.0)
    nats = -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(target, none + 1), axis=-1)
    matched = boxes[query]
    l1 = jnp.sum(jnp.abs(matched - to_centres(objects.boxes)), axis=-1)
    apart = 1 - giou(to_corners(matched)[:, None], objects.boxes[:, None])[:, 0, 0]
    return {
        "class_loss": jnp.sum(nats * weight) / jnp.sum(weight),
        "l1_loss": L1 * _mean(l1, objects.valid),
        "giou_loss": GIOU * _mean(apart, objects.valid),
    }


def set_detections(
    logits: Float[Array, "queries classes_and_none"],
    boxes: Float[Array, "queries 4"],
    *,
    number: int,
    nms: float | None,
) -> Detections:
    """Of each query the best class but "no object", and its probability."""
    probability = jax.nn.softmax(logits)[:, :-1]
    labels = jnp.argmax(probability, axis=-1).astype(jnp.int32)
    return select(to_corners(boxes), jnp.max(probability, axis=-1), labels, number=number, nms=nms)


# --------------------------------------------------------------------------------------- a grid of places


def grid_points(rows: int, columns: int) -> Float[Array, "{rows}*{columns} 2"]:
    """The centre (x, y) of each cell of a grid over the image, row by row."""
    y, x = jnp.meshgrid((jnp.arange(rows) + 0.5) / rows, (jnp.arange(columns) + 0.5) / columns, indexing="ij")
    return jnp.stack([x, y], axis=-1).reshape(-1, 2)


def place_boxes(code: Float[Array, "places 4"], grid: tuple[int, int]) -> Float[Array, "places 4"]:
    """The box that each place of a grid gives: shifts and logarithms of sizes, in units of a cell around it."""
    cell = jnp.broadcast_to(1 / jnp.array([grid[1], grid[0]], jnp.float32), (len(code), 2))
    points = grid_points(*grid)
    return decode(code, jnp.concatenate([points - cell / 2, points + cell / 2], axis=-1))


def place_targets(objects: Objects, grid: tuple[int, int]) -> tuple[Int[Array, " places"], Bool[Array, " places"]]:
    """The object of each place of a grid, and whether it has one.

    A place has those whose box it lies in, within 1.5 cells of the centre (FCOS's centre sampling), and those whose
    centre is in its cell, however small; of several the smallest.
    """
    points = grid_points(*grid)[:, None]
    low, high = objects.boxes[None, :, :2], objects.boxes[None, :, 2:]
    cells = jnp.array([grid[1], grid[0]], jnp.float32)[None, None]
    away = jnp.max(jnp.abs(points - (low + high) / 2) * cells, axis=-1)
    inside = jnp.all((points > low) & (points < high), axis=-1)
    has = ((inside & (away < 1.5)) | (away <= 0.5)) & objects.valid[None]
    size = jnp.where(has, area(objects.boxes)[None], jnp.inf)
    return jnp.argmin(size, axis=1).astype(jnp.int32), jnp.any(has, axis=1)


def place_losses(
    logits: Float[Array, "places classes"],
    code: Float[Array, "places 4"],
    quality: Float[Array, " places"],
    objects: Objects,
    grid: tuple[int, int],
) -> Losses:
    """FCOS's (Tian et al. 2019), with the IoU of a place's box as its quality (`quality`, logits) for centre-ness."""
    chosen, has = place_targets(objects, grid)
    target = jax.nn.one_hot(objects.labels[chosen], logits.shape[1]) * has[:, None]
    boxes, true = place_boxes(code, grid)[:, None], objects.boxes[chosen][:, None]
    overlap = jax.lax.stop_gradient(iou(boxes, true)[:, 0, 0])
    return {
        "class_loss": jnp.sum(focal(logits, target)) / jnp.maximum(jnp.sum(has), 1),
        "giou_loss": _mean(1 - giou(boxes, true)[:, 0, 0], has),
        "quality_loss": _mean(binary_cross_entropy(quality, overlap), has),
    }


def place_detections(
    logits: Float[Array, "places classes"],
    code: Float[Array, "places 4"],
    quality: Float[Array, " places"],
    grid: tuple[int, int],
    *,
    number: int,
    nms: float | None,
) -> Detections:
    """Scores are the geometric mean of the probability of a class and of the quality."""
    scores = jnp.sqrt(jax.nn.sigmoid(logits) * jax.nn.sigmoid(quality)[:, None])
    return select(*by_class(place_boxes(code, grid), scores), number=number, nms=nms)


# ------------------------------------------------------------------------------------- anchors and proposals

CODE_SCALE = (10.0, 10.0, 5.0, 5.0)  # of the second stage: about what makes each code's variance 1
POSITIVE, NEGATIVE = 0.7, 0.3  # IoU of an anchor with an object (Ren et al. 2015, 3.1.2)
SAMPLED_ANCHORS = 256  # of an image, at most half of them with an object
FOREGROUND = 0.5  # IoU of a proposal with its object (Girshick 2015)


def grid_anchors(
    grid: tuple[int, int], sizes: tuple[float, ...], ratios: tuple[float, ...], image: tuple[int, int]
) -> Float[Array, "anchors 4"]:
    """Boxes around every place: of each size (the root of the area, in pixels) and each ratio of height to width.

    image: its rows and columns in pixels. A place's anchors are side by side.
    """
    shapes = [
        (size / math.sqrt(ratio) / image[1], size * math.sqrt(ratio) / image[0]) for size in sizes for ratio in ratios
    ]
    points, half = grid_points(*grid)[:, None], jnp.array(shapes)[None] / 2
    return jnp.concatenate([points - half, points + half], axis=-1).reshape(-1, 4)


def propose(
    scores: Float[Array, " anchors"], code: Float[Array, "anchors 4"], anchors: Float[Array, "anchors 4"], number: int
) -> Detections:
    """The best boxes of the first stage, which overlap by at most 0.7; without gradient."""
    scores, code = jax.lax.stop_gradient((scores, code))
    boxes = jnp.clip(decode(code, anchors), 0, 1)
    return select(boxes, scores, jnp.zeros(len(scores), jnp.int32), number=number, nms=0.7)


def anchor_losses(
    scores: Float[Array, " anchors"],
    code: Float[Array, "anchors 4"],
    anchors: Float[Array, "anchors 4"],
    objects: Objects,
) -> Losses:
    """Of the region proposal network (Ren et al. 2015, eq. 1): is there an object, and where.

    An anchor is positive where its IoU with an object is 0.7, or the highest that this object has; negative below 0.3.
    The paper samples 256 anchors of an image; here each counts by the chance that it would be drawn.
    """
    overlap = jnp.where(objects.valid[None], iou(anchors, objects.boxes), -1)
    best = jnp.max(overlap, axis=1)
    is_best = (overlap == jnp.max(overlap, axis=0, keepdims=True)) & (overlap > 0)
    positive = (best >= POSITIVE) | jnp.any(is_best, axis=1)
    negative = ~positive & (best < NEGATIVE)
    weight = _expected_sample(positive, negative, SAMPLED_ANCHORS)
    target = encode(_with_area(objects.boxes)[jnp.argmax(overlap, axis=1)], anchors)
    errors = jnp.sum(smooth_l1(code - target), axis=-1)
    return {
        "proposal_class_loss": jnp.sum(binary_cross_entropy(scores, positive) * weight) / jnp.sum(weight),
        "proposal_box_loss": _mean(errors, positive),
    }


def _expected_sample(positive: Bool[Array, " places"], negative: Bool[Array, " places"], number: int):
    """The chance of each to be among `number`, at most half of them positive, the rest negative."""
    positives, negatives = jnp.sum(positive), jnp.sum(negative)
    taken = jnp.minimum(positives, number // 2)
    of_positives = taken / jnp.maximum(positives, 1)
    of_negatives = jnp.minimum((number - taken) / jnp.maximum(negatives, 1), 1)
    return positive * of_positives + negative * of_negatives


def region_losses(
    logits: Float[Array, "proposals {code.shape[1]}+1"],
    code: Float[Array, "proposals classes 4"],
    proposals: Detections,
    objects: Objects,
) -> Losses:
    """Of the second stage (Girshick 2015, eq. 1): the class of each proposal, the last one being "no object".

    And the box, by the code of the true class, where a proposal's IoU with an object is 0.5 at least.
    """
    is_there = proposals.scores > ABSENT
    overlap = jnp.where(objects.valid[None] & is_there[:, None], iou(proposals.boxes, objects.boxes), -1)
    chosen, has = jnp.argmax(overlap, axis=1), jnp.max(overlap, axis=1) >= FOREGROUND
    none = logits.shape[1] - 1
    label = jnp.where(has, objects.labels[chosen], none)
    nats = -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(label, none + 1), axis=-1)
    ours = jnp.sum(code * jax.nn.one_hot(label, none)[:, :, None], axis=1)
    scale = jnp.array(CODE_SCALE)[None]
    target = encode(_with_area(objects.boxes)[chosen], _with_area(proposals.boxes)) * scale
    return {
        "class_loss": _mean(nats, is_there),
        "box_loss": _mean(jnp.sum(smooth_l1(ours - target), axis=-1), has),
    }


def region_detections(
    logits: Float[Array, "proposals {code.shape[1]}+1"],
    code: Float[Array, "proposals classes 4"],
    proposals: Detections,
    *,
    number: int,
    nms: float | None,
) -> Detections:
    """Every class of every proposal, by its probability."""
    scale = jnp.array(CODE_SCALE)[None, None]
    around = jnp.broadcast_to(proposals.boxes[:, None], code.shape)
    scores = jnp.where(proposals.scores[:, None] > ABSENT, jax.nn.softmax(logits)[:, :-1], ABSENT)
    return select(*by_class(decode(code / scale, around), scores), number=number, nms=nms)


# ------------------------------------------------------------------------------------------------ of them all


def focal(logits: Float[Array, "*number"], target: Float[Array, "*number"]) -> Float[Array, "*number"]:
    """Binary cross-entropy that counts less the surer it is (Lin et al. 2017, eq. 5)."""
    probability = jax.nn.sigmoid(logits)
    right = probability * target + (1 - probability) * (1 - target)
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    return alpha * (1 - right) ** FOCAL_GAMMA * binary_cross_entropy(logits, target)


def binary_cross_entropy(logits: Float[Array, "*number"], target: Array) -> Float[Array, "*number"]:
    """-target log sigmoid(logits) - (1 - target) log sigmoid(-logits)."""
    return jax.nn.softplus(logits) - logits * target


def smooth_l1(x: Float[Array, "*number"]) -> Float[Array, "*number"]:
    """x^2 / 2 up to 1, |x| - 1/2 beyond (Girshick 2015, eq. 3)."""
    size = jnp.abs(x)
    return jnp.where(size < 1, size**2 / 2, size - 0.5)


def _mean(values: Float[Array, " number"], counts: Bool[Array, " number"]) -> Float[Array, ""]:
    """0 where nothing counts."""
    return jnp.sum(jnp.where(counts, values, 0)) / jnp.maximum(jnp.sum(counts), 1)


def _with_area(boxes: Float[Array, "number 4"]) -> Float[Array, "number 4"]:
    """Padding, which has no area, made so that its code is finite."""
    return jnp.where((area(boxes) > 0)[:, None], boxes, jnp.array([[0.0, 0.0, 1.0, 1.0]]))
