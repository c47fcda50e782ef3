"""Writes tests/goldens/detection_scores.npz: made-up detections, and what `pycocotools` 2.0.x says of them.

    python tools/make_detection_goldens.py

Needs the extra `detection-parity`, which `make parity` installs.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

FILE = Path(__file__).parents[1] / "tests" / "goldens" / "detection_scores.npz"
# Where COCOeval.stats has each value.
STATS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar": 8}
STATS |= {"ar_small": 9, "ar_medium": 10, "ar_large": 11}


def near(generator: np.random.Generator, true: np.ndarray, number: int, spread: float) -> np.ndarray:
    """Detections around true boxes [images, objects, 4]."""
    chosen = generator.integers(0, true.shape[1], (len(true), number))
    boxes = np.take_along_axis(true, chosen[:, :, None], axis=1) + spread * generator.normal(
        size=(len(true), number, 4)
    )
    return np.concatenate([np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])], -1)


def corners(generator: np.random.Generator, shape: tuple[int, ...], size: float) -> np.ndarray:
    """Boxes of the shape, anywhere in a square of this size."""
    pairs = np.sort(generator.uniform(0, size, (*shape, 2, 2)), axis=-2)
    return pairs.reshape(*shape, 4)


def cases() -> dict[str, dict[str, np.ndarray]]:
    """Arrays of `DetectionScores`, by the name of the case."""
    generator = np.random.default_rng(0)
    made = {}
    for name, size, spread, classes, round_to in (
        ("random", 200, 4.0, 3, None),
        ("whole", 12, 0.7, 2, 1),  # whole numbers: overlaps that lie on thresholds, and equal ones
        ("sizes", 128, 6.0, 2, 32),  # areas that lie on the bounds of the sizes
        ("one", 64, 3.0, 1, None),
    ):
        images, objects, detections = (12, 5, 30) if name != "one" else (1, 1, 3)
        true = corners(generator, (images, objects), size)
        boxes = near(generator, true, detections, spread)
        if round_to:
            true, boxes = (np.round(each / round_to) * round_to for each in (true, boxes))
        scores = np.round(generator.uniform(size=(images, detections)), 1 if name == "whole" else 6)
        scores[generator.uniform(size=scores.shape) < 0.2] = -np.inf
        kind = generator.choice(3, (images, objects), p=(0.25, 0.55, 0.2)) if name != "one" else np.ones((1, 1), int)
        kind[:1] *= name == "one"  # an image without objects
        made[name] = {
            "boxes": boxes.astype(np.float32),
            "scores": scores.astype(np.float32),
            "labels": generator.integers(0, classes + 1, scores.shape),  # one class has no object
            "true_boxes": true.astype(np.float32),
            "true_labels": generator.integers(0, classes, kind.shape),
            "true_kind": kind,
        }
    nothing = {
        name: array[:, :0] if name in ("boxes", "scores", "labels") else array for name, array in made["random"].items()
    }
    crowds = made["random"] | {"true_kind": np.minimum(made["random"]["true_kind"], 1) * 2}
    same = made["whole"] | {"scores": np.full_like(made["whole"]["scores"], 0.5)}
    return made | {"no_detections": nothing, "only_crowds": crowds, "equal_scores": same}


def annotations(case: dict[str, np.ndarray], part: str) -> list[dict]:
    """COCO's list of the true objects (`true_`) or of the detections."""
    boxes, labels = case[f"{part}boxes"].astype(np.float64), case[f"{part}labels"]
    found = []
    for image, place in np.ndindex(labels.shape):
        x0, y0, x1, y1 = boxes[image, place].tolist()
        entry = {
            "image_id": image + 1,
            "category_id": int(labels[image, place]) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        if part and case["true_kind"][image, place]:
            crowd = int(case["true_kind"][image, place] == 2)
            found.append(entry | {"id": len(found) + 1, "area": (x1 - x0) * (y1 - y0), "iscrowd": crowd})
        elif not part and case["scores"][image, place] > -np.inf:
            found.append(entry | {"score": float(case["scores"][image, place])})
    return found


def stats(case: dict[str, np.ndarray]) -> dict[str, float]:
    """What pycocotools prints, by our names."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        images = len(case["true_labels"])
        categories = int(max(case["true_labels"].max(), case["labels"].max(initial=0))) + 1
        truth.dataset = {
            "info": {},
            "images": [{"id": number + 1} for number in range(images)],
            "categories": [{"id": number + 1} for number in range(categories)],
            "annotations": annotations(case, "true_"),
        }
        truth.createIndex()
        detections = annotations(case, "")
        found = COCO()
        found.dataset = truth.dataset | {"annotations": []}
        found.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections) if detections else found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(evaluation.stats[place]) for name, place in STATS.items()}


if __name__ == "__main__":
    arrays = {}
    for name, case in cases().items():
        found = stats(case)
        print(name, {key: round(value, 4) for key, value in found.items()})
        arrays |= {f"{name}/{key}": array for key, array in case.items()}
        arrays |= {f"{name}/stats/{key}": np.float64(value) for key, value in found.items()}
    np.savez_compressed(FILE, **arrays)
