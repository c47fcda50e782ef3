"""Detection metrics against pycocotools (tools/make_detection_goldens.py), and against cases solved by hand."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import metrics
from flaxformer_lab.functional.average_precision import DetectionScores

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "detection_scores.npz")
CASES = sorted({name.partition("/")[0] for name in GOLDENS.files})


def state(case, images=slice(None)):
    names = ("boxes", "scores", "labels", "true_boxes", "true_labels", "true_kind")
    arrays = [GOLDENS[f"{case}/{name}"][images] for name in names]
    return DetectionScores(*arrays, np.ones(len(arrays[0])))


@pytest.mark.parametrize("case", CASES)
def test_equal_to_pycocotools(case):
    values = state(case).compute()
    expected = {name.rpartition("/")[2]: GOLDENS[name] for name in GOLDENS.files if name.startswith(f"{case}/stats")}
    assert len(expected) == 10
    for name, value in expected.items():
        if value == -1:  # no object counts
            assert name not in values
        else:
            assert values[name] == pytest.approx(float(value), abs=1e-9), name


def test_batches_merge_to_the_whole_and_padding_does_not_count():
    whole = state("random")
    parts = [state("random", slice(0, 5)), state("random", slice(5, 12))]
    padding = DetectionScores(*(leaf[:1] for leaf in vars(parts[0]).values() if hasattr(leaf, "shape")))
    padding = DetectionScores(*list(vars(padding).values())[:6], np.zeros(1))
    merged = metrics.compute([{"detections": each} for each in (*parts, padding)])
    assert merged == whole.compute()
    assert "detections" not in merged and 0 < merged["ap"] < merged["ap50"]


def one_image(boxes, scores, labels, **options):
    true = np.array([[[0, 0, 10, 10], [20, 20, 30, 30]]], np.float32)
    arrays = [np.asarray(each)[None] for each in (boxes, scores, labels)]
    return DetectionScores(*arrays, true, np.array([[0, 1]]), np.ones((1, 2), int), np.ones(1), **options).compute()


def test_by_hand():
    """The first class is found, behind a wrong detection; the second is not."""
    boxes = np.array([[40, 40, 50, 50], [0, 0, 10, 10], [0, 0, 10, 9]], np.float32)
    values = one_image(boxes, [0.9, 0.8, 0.7], [0, 0, 0])
    assert values["ap"] == pytest.approx(0.25) and values["ar"] == 0.5
    assert values["duplicates"] == 0.5
    assert values["ap_small"] == values["ap"] and "ap_large" not in values
    # A pixel has ten units here, so the objects have sides of 100.
    values = one_image(boxes, [0.9, 0.8, 0.7], [0, 0, 0], unit=(10.0, 10.0))
    assert "ap_small" not in values and values["ap_large"] == pytest.approx(0.25)


def test_a_score_that_is_no_number_spoils_the_values():
    values = one_image(np.zeros((1, 4), np.float32), [math.nan], [0])
    assert all(math.isnan(value) for value in values.values()) and len(values) == 11


def test_more_detections_than_coco_counts_are_refused():
    with pytest.raises(ValueError, match="101 detections of an image are more than COCO's 100"):
        one_image(np.zeros((101, 4), np.float32), np.zeros(101), np.zeros(101, int))


def test_it_is_no_sum_over_examples():
    """So training leaves it out, and devices gather it."""
    assert metrics.additive(
        {"detections": state("one"), "loss": metrics.Average(jnp.ones(()), jnp.ones(()))}
    ).keys() == {"loss"}
