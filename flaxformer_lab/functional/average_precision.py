"""Detection metrics as COCO defines them: average precision and recall over thresholds of IoU, and by size.

Lin et al. 2014, and the evaluation code that became the definition (`pycocotools.cocoeval`), to which the values are
equal: in float64, with its 101 points of recall, and with its rules for ties and for objects that do not count.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from flaxformer_lab.functional.metrics import Gathered, Leaf

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
RECALLS = np.linspace(0, 1, 101)
MOST_DETECTIONS = 100  # of an image
SIZES = ("", "_small", "_medium", "_large")  # of an object; the first is all of them
SURE = 0.5  # the score above which a detection counts in `duplicates`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DetectionScores(Gathered):
    """Each image's detections and its true objects; several values, by name.

    boxes [images, detections, 4], scores, labels: detections; one whose score is -inf is not there. true_boxes
    [images, objects, 4], true_labels, true_kind: 0 where no object is, 1 for an object, 2 for a region in which
    detections neither count nor are wrong (a crowd). weights [images]: 0 for padding. Boxes are (x0, y0, x1, y1).
    unit: how many pixels one unit of x and of y has. bounds: the sides of the squares that part small objects from
    medium ones, and these from large ones, in pixels.
    """

    boxes: Leaf
    scores: Leaf
    labels: Leaf
    true_boxes: Leaf
    true_labels: Leaf
    true_kind: Leaf
    weights: Leaf
    unit: tuple[float, float] = dataclasses.field(default=(1.0, 1.0), metadata={"static": True})
    bounds: tuple[float, float] = dataclasses.field(default=(32.0, 96.0), metadata={"static": True})

    def compute(self) -> dict[str, float]:
        """`ap` (mean over thresholds), `ap50`, `ap75`, `ar` (recall, likewise), `ap` and `ar` by size; `duplicates`.

        What no object counts for is left out; a score that is NaN makes all values NaN. `duplicates`: of the
        detections with a score above 0.5 that cover an object of their class (IoU of 0.5 at least), the share that come
        too late: another one with a higher score has covered it.

        Raises:
            ValueError: more than 100 detections of an image: COCO would leave out the others.
        """
        names = [f"{kind}{size}" for size in SIZES for kind in ("ap", "ar")] + ["ap50", "ap75", "duplicates"]
        kept = np.asarray(self.weights) != 0
        if np.isnan(np.asarray(self.scores)[kept]).any():
            return dict.fromkeys(names, math.nan)
        precision, recall = _curves(matched := self._matched(kept))
        values = {}
        for place, size in enumerate(SIZES):
            values |= {f"ap{size}": _mean(precision[:, place]), f"ar{size}": _mean(recall[:, place])}
        values |= {"ap50": _mean(precision[0, 0]), "ap75": _mean(precision[5, 0]), "duplicates": matched.duplicates()}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _matched(self, kept: Bool[np.ndarray, " images"]) -> "_Matched":
        """Every detection beside the object that it found, in each image from the highest score down."""
        scores = np.asarray(self.scores)[kept]
        if scores.shape[1] > MOST_DETECTIONS:
            raise ValueError(f"{scores.shape[1]} detections of an image are more than COCO's {MOST_DETECTIONS}")
        order, pixels = np.argsort(-scores, axis=1, kind="stable"), np.array([*self.unit, *self.unit], np.float64)
        scores = np.take_along_axis(scores, order, axis=1)
        labels = np.take_along_axis(np.asarray(self.labels)[kept], order, axis=1)
        boxes = np.take_along_axis(np.asarray(self.boxes, np.float64)[kept] * pixels, order[:, :, None], axis=1)
        true_boxes = np.asarray(self.true_boxes, np.float64)[kept] * pixels
        true_labels, kind = np.asarray(self.true_labels)[kept], np.asarray(self.true_kind)[kept]

        overlaps = _overlaps(boxes, true_boxes, kind == 2)
        rivals = (labels[:, :, None] == true_labels[:, None]) & (kind > 0)[:, None] & (scores > -np.inf)[:, :, None]
        overlaps = np.where(rivals, overlaps, -1)
        low, high = _size_ranges(self.bounds)
        outside = [(_area(each) < low) | (_area(each) > high) for each in (boxes, true_boxes)]
        aside = (kind == 2) | outside[1]  # [sizes, images, objects]: does not count
        found, left_out = _match(overlaps, aside, kind == 2)
        left_out |= ~found & outside[0]
        counted = (kind == 1) & ~aside
        classes = np.unique(true_labels[kind > 0])
        numbers = (
            np.stack([np.sum(counted & (true_labels == each), axis=(1, 2)) for each in classes], axis=1)
            if len(classes)
            else np.zeros((len(SIZES), 0))
        )
        return _Matched(scores, labels, overlaps.max(axis=2, initial=-1), found, left_out, classes, numbers)


class _Matched(NamedTuple):
    """found, left_out [thresholds, sizes, images, detections]: it has an object of its own; it does not count.

    overlap: the largest with an object of its class. numbers [sizes, classes]: objects that count.
    """

    scores: Float[np.ndarray, "images detections"]
    labels: Float[np.ndarray, "images detections"]
    overlap: Float[np.ndarray, "images detections"]
    found: Bool[np.ndarray, "thresholds sizes images detections"]
    left_out: Bool[np.ndarray, "thresholds sizes images detections"]
    classes: np.ndarray
    numbers: np.ndarray

    def duplicates(self) -> float:
        """The share as in `compute`; 0 where nothing is covered."""
        sure = (self.scores > SURE) & (self.overlap >= THRESHOLDS[0]) & ~self.left_out[0, 0]
        return float(np.mean(~self.found[0, 0][sure])) if sure.any() else 0.0


def _size_ranges(bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest area of each of `SIZES`, [sizes, 1, 1]; both still belong to it."""
    small, medium = bounds[0] ** 2, bounds[1] ** 2
    limits = np.array([[0, 1e10], [0, small], [small, medium], [medium, 1e10]])
    return limits[:, 0, None, None], limits[:, 1, None, None]


def _area(boxes: Float[np.ndarray, "*number 4"]) -> Float[np.ndarray, "*number"]:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlaps(
    boxes: Float[np.ndarray, "images detections 4"],
    true: Float[np.ndarray, "images objects 4"],
    crowd: Bool[np.ndarray, "images objects"],
) -> Float[np.ndarray, "images detections objects"]:
    """IoU; with a crowd, the share of the detection that lies inside."""
    a, b = boxes[:, :, None], true[:, None]
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.where((size > 0).all(axis=-1), size[..., 0] * size[..., 1], 0)
    union = np.where(crowd[:, None], _area(a), _area(a) + _area(b) - common)
    return np.where(common > 0, common / np.where(common > 0, union, 1), 0)


def _match(
    overlaps: Float[np.ndarray, "images detections objects"],
    aside: Bool[np.ndarray, "sizes images objects"],
    crowd: Bool[np.ndarray, "images objects"],
) -> tuple[Bool[np.ndarray, "thresholds sizes images detections"], ...]:
    """Which detections get an object, and for which that is one that does not count.

    Each in turn takes, of the objects left, the one that it overlaps most (the last of equal ones), by the threshold at
    least; one that does not count only where no other is. A crowd is never taken.
    """
    (images, detections, objects), sizes = overlaps.shape, len(aside)
    found = np.zeros((len(THRESHOLDS), sizes, images, detections), bool)
    left_out = np.zeros_like(found)
    if not objects:
        return found, left_out
    taken = np.zeros((len(THRESHOLDS), sizes, images, objects), bool)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None, None, None]
    for place in range(detections):
        each = overlaps[:, place]
        fits = (each >= least) & (~taken | crowd)
        # Overlaps are at most 1, so any object that counts goes before those that do not.
        rank = np.where(fits, each - 3.0 * aside, -np.inf)[..., ::-1]
        best = objects - 1 - rank.argmax(axis=-1)[..., None]
        has = fits.any(axis=-1)
        found[..., place] = has
        left_out[..., place] = has & np.take_along_axis(np.broadcast_to(aside, fits.shape), best, axis=-1)[..., 0]
        np.put_along_axis(taken, best, np.take_along_axis(taken, best, axis=-1) | has[..., None], axis=-1)
    return found, left_out


def _curves(matched: _Matched) -> tuple[np.ndarray, np.ndarray]:
    """Precision [thresholds, sizes, classes, recalls] and the final recall [thresholds, sizes, classes].

    NaN for a class of which no object counts.
    """
    shape = (len(THRESHOLDS), len(SIZES), len(matched.classes))
    precision, recall = np.full((*shape, len(RECALLS)), math.nan), np.full(shape, math.nan)
    for place, label in enumerate(matched.classes):
        chosen = (matched.labels == label) & (matched.scores > -np.inf)
        order = np.argsort(-matched.scores[chosen], kind="stable")
        found, left_out = (each[:, :, chosen][..., order] for each in (matched.found, matched.left_out))
        right, wrong = (np.cumsum(each, axis=-1, dtype=np.float64) for each in (found & ~left_out, ~found & ~left_out))
        number = matched.numbers[:, place]
        for size in np.flatnonzero(number):
            recalled = right[:, size] / number[size]
            precise = right[:, size] / (right[:, size] + wrong[:, size] + np.spacing(1))
            # The highest precision at this recall or a larger one; 0 at recalls that are never reached.
            best = np.maximum.accumulate(precise[:, ::-1], axis=1)[:, ::-1]
            best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
            recall[:, size, place] = recalled[:, -1] if recalled.shape[1] else 0
            for threshold in range(len(THRESHOLDS)):
                at = np.searchsorted(recalled[threshold], RECALLS, side="left")
                precision[threshold, size, place] = best[threshold, at]
    return precision, recall


def _mean(values: np.ndarray) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else math.nan
