"""Does attention detect by brute force? Claim C17: queries beside anchors and places, in scenes of one or two digits.

All detectors share four convolutions of stride 8. DETR's queries attend to the 4 x 4 tokens and to one another, and an
exact assignment gives each object one of them. Faster R-CNN has anchors, proposals and RoIAlign; the dense detector
asks every place. `few longer` has six times the updates of `few`.

`detection.py:device` is for a GPU (detection_device.py): one to four digits in larger scenes, more of DETR's parts, and
`many`, with more items, which overlap more.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/detection.py --workdir=runs/detection
Time: half an hour beside other work on 2 cores of an AMD EPYC.
Result: docs/results/detection.md, of the values in docs/results/detection.csv.gz.
"""

from typing import Literal

from ml_collections import ConfigDict

SOURCE = "the debate that founded the lab: docs/science.md"
LONGER = 6  # how many times the updates
TENTH = "a tenth of the range of AP, five times what reports call equal (0.02)"
SIGN = "the sign alone is asked for"
DETR = {
    "name": "encoder_decoder",
    "width": 64,
    "encoder_depth": 1,
    "depth": 2,
    "attention": {"num_heads": 4, "head_dim": None},
    "ffn": {"expansion": 2.0},
    "position": "off",
}
SMALL = {  # one or two digits, 4 x 4 tokens
    "canvas": 32,
    "items": (1, 2),
    "item_size": 14.0,
    "queries": 8,
    "detections": 8,
    "proposals": 8,
    "evaluation_examples": 256,
}
SCENES = {
    "canvas": 48,
    "items": (1, 4),
    "item_size": 18.0,
    "scale": (0.7, 1.3),
    "classes": 4,
    "clutter": 1,
    "queries": 16,
    "detections": 16,
    "proposals": 16,
    "anchor_sizes": (8.0, 13.0),
    "size_bounds": (10.0, 14.0),
    "evaluation_examples": 512,
}


def _other(detector: str) -> dict:
    """Another detector, whose body is one residual block of convolutions."""
    return {"ablation": "cnn_2d", "task": {"detector": detector}, "model": {"depth": 1}}


ANCHORS = {"faster_rcnn": _other("faster_rcnn")}
PARTS = {
    "NMS": {"task": {"nms": 0.5}},
    "dense": _other("dense"),
    "no self-attention": {"model": {"self_attention": False}},
    "no self-attention with NMS": {"model": {"self_attention": False}, "task": {"nms": 0.5}},
    "no encoder": {"model": {"encoder_depth": 0}},
    "4 queries": {"task": {"queries": 4}},
    "1 head": {"model": {"attention": {"num_heads": 1}}},
    "32 queries": {"task": {"queries": 32}},
}


def _entry(steps: int, variants: dict, batch_size: int = 32, **task: object) -> dict:
    training = {"steps": steps, "batch_size": batch_size, "evaluate_every": steps // 5, "checkpoint_every": steps}
    return {
        "recipe": "../scenes.py",
        "overrides": {
            "task": SCENES | task,
            "model": DETR,
            "optimizer": {"name": "adamw", "warmup_steps": 100, "clip_norm": 1.0},
            "training": training | {"evaluate_batch_size": 256, "steps_per_call": 100},
        },
        "variants": variants,
        "threshold": 0.5,
    }


def _score(task: str, variant: str = "baseline") -> dict:
    return {"task": task, "variant": variant}


def _compared(name: str, question: str, more: dict, less: dict, threshold: float = 0.0) -> dict:
    because = TENTH if threshold else SIGN
    return {
        "name": name,
        "question": question,
        "more": more,
        "less": less,
        "threshold": threshold,
        "because": because,
    }


CLAIM = {
    "name": "C17",
    "statement": "Attention detects by brute force: with enough computation it finds every target, as anchors do.",
    "source": SOURCE,
    "comparisons": (
        _compared(
            "behind",
            "at equal updates, are anchors ahead of queries by a tenth?",
            _score("few", "faster_rcnn"),
            _score("few"),
            0.1,
        ),
        _compared(
            "places",
            "at equal updates, is the dense detector ahead of queries by a tenth?",
            _score("few", "dense"),
            _score("few"),
            0.1,
        ),
        _compared(
            "computation",
            f"do queries gain a tenth from {LONGER} times the updates?",
            _score("few longer"),
            _score("few"),
            0.1,
        ),
        _compared(
            "catch up",
            f"do queries gain more from {LONGER} times the updates than anchors do?",
            _score("few longer") | {"gain_over": "few"},
            _score("few longer", "faster_rcnn") | {"gain_over": "few"},
        ),
        _compared(
            "still behind",
            f"with {LONGER} times the updates, are anchors still ahead by a tenth?",
            _score("few longer", "faster_rcnn"),
            _score("few longer"),
            0.1,
        ),
        _compared(
            "queries",
            "do 8 queries find more than 2, one for each possible object?",
            _score("few"),
            _score("few", "2 queries"),
        ),
        _compared(
            "suppression",
            "without attention among queries, does suppression help?",
            _score("few", "no self-attention with NMS"),
            _score("few", "no self-attention"),
        ),
    ),
    "conclusions": (
        {
            "verdict": "supported",
            "reason": "queries gain from computation until anchors are no longer ahead",
            "when": {"computation": "yes", "still behind": "no"},
        },
        {
            "verdict": "supported only when",
            "reason": "computation is what queries lack: they gain more from it than anchors, which are still ahead at "
            "the same number of updates",
            "when": {"computation": "yes", "catch up": "yes", "still behind": "yes"},
        },
        {
            "verdict": "refuted",
            "reason": f"within {LONGER} times the updates: queries gain from computation, but no more than anchors do, "
            "and stay behind them",
            "when": {"computation": "yes", "catch up": "no", "still behind": "yes"},
        },
        {
            "verdict": "refuted",
            "reason": f"{LONGER} times the computation does not help queries",
            "when": {"computation": "no"},
        },
        {"verdict": "supported only when", "reason": "the computation is enough, and the detector the right one"},
    ),
}


def get_config(form: Literal["", "device"] = "") -> ConfigDict:
    """The ablation, or the one for a `device`, of which nothing is claimed."""
    if form == "device":
        steps, claims, search = 1500, (), {"learning_rates": (0.002,), "seeds": (0, 1, 2, 3, 4)}
        tasks = {
            "few": _entry(steps, ANCHORS | PARTS),
            "few longer": _entry(4 * steps, ANCHORS),
            "many": _entry(steps, ANCHORS, items=(3, 6), overlap=0.6),
        }
    else:
        steps, claims, small = 500, (CLAIM,), SMALL | {"batch_size": 16}
        # How many times the updates are enough to ask was found with the seeds 0 to 4.
        search = {"learning_rates": (0.0005, 0.001, 0.002), "seeds": (5, 6, 7, 8, 9), "search_seeds": 2}
        parts = {name: PARTS[name] for name in ("dense", "no self-attention", "no self-attention with NMS")}
        tasks = {
            "few": _entry(steps, ANCHORS | parts | {"2 queries": {"task": {"queries": 2}}}, **small),
            "few longer": _entry(LONGER * steps, ANCHORS, **small),
        }
    return ConfigDict(
        {
            "question": "Does attention detect by brute force?",
            "tasks": tasks,
            "claims": claims,
        }
        | search
    )
