"""Does attention detect by brute force? Claim C17: queries beside anchors and places, in scenes of one to four digits.

All detectors share four convolutions of stride 8. DETR's queries attend to the 6 x 6 tokens and to one another, and an
exact assignment gives each object one of them. Faster R-CNN has anchors, proposals and RoIAlign; the dense detector
asks every place. `few longer` has four times the updates of `few` (six in the short form); `many` has more items, which
overlap more. Rates are not searched for: the short form has the recipe's.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/detection.py --workdir=runs/detection
    `detection.py:short`: the cells that the claim needs, in small scenes of one or two digits
Hardware: one NVIDIA H200, shared with seven other ablations.
Time: 94 s for the cell `dense`, 218 s for the baseline, compilation included; 3 of 14 cells have finished.
Result: docs/results/detection.md, of the values in docs/results/detection.csv.gz.
"""

from ml_collections import ConfigDict

SOURCE = "the debate that founded the lab: docs/science.md"
STEPS = 1500
LONGER = {"device": 4, "short": 6}  # how many times the updates
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


def _claim(queries: int, fewest: int, longer: int) -> dict:
    return {
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
                f"do queries gain a tenth from {longer} times the updates?",
                _score("few longer"),
                _score("few"),
                0.1,
            ),
            _compared(
                "still behind",
                f"with {longer} times the updates, are anchors still ahead by a tenth?",
                _score("few longer", "faster_rcnn"),
                _score("few longer"),
                0.1,
            ),
            _compared(
                "queries",
                f"do {queries} queries find more than {fewest}, one for each possible object?",
                _score("few"),
                _score("few", f"{fewest} queries"),
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
                "reason": "computation is what queries lack: they gain from it, though anchors stay ahead at the same "
                "number of updates",
                "when": {"computation": "yes", "still behind": "yes"},
            },
            {"verdict": "refuted", "reason": f"{longer} times the computation does not help queries"},
        ),
    }


def get_config(form: str = "device") -> ConfigDict:
    """The ablation, for a `device` or in its `short` form."""
    if form == "short":
        steps, small = 500, SMALL | {"batch_size": 16}
        parts = {name: PARTS[name] for name in ("dense", "no self-attention", "no self-attention with NMS")}
        tasks = {
            "few": _entry(steps, ANCHORS | parts | {"2 queries": {"task": {"queries": 2}}}, **small),
            "few longer": _entry(LONGER["short"] * steps, ANCHORS, **small),
        }
    else:
        tasks = {
            "few": _entry(STEPS, ANCHORS | PARTS),
            "few longer": _entry(LONGER["device"] * STEPS, ANCHORS),
            "many": _entry(STEPS, ANCHORS, items=(3, 6), overlap=0.6),
        }
    return ConfigDict(
        {
            "question": "Does attention detect by brute force?",
            "tasks": tasks,
            "learning_rates": (0.001,) if form == "short" else (0.002,),
            "seeds": (0, 1, 2, 3, 4),
            "claims": (_claim(8, 2, LONGER[form]) if form == "short" else _claim(16, 4, LONGER[form]),),
        }
    )
