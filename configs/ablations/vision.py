"""Are vision Transformers near-sighted, and where do they look? Claims C14 and C22, and C5 on images.

Two marks of an image, near and far, ask for sight with a known answer: a convolution whose windows do not meet stays at
chance, and a Transformer without positions cannot tell left from right. Digits ask for what is learned from few images,
from all, and of images that lie elsewhere than in training. One digit among clutter shows whether attention and
gradients lie on it. All within 8% of the baseline's parameters.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/vision.py --workdir=runs/vision
The 13 of 23 cells that claims need: --config.claims=C14,C5,C22
Time: the five cells of marks that claims need took 38 minutes beside other work on 2 cores of an AMD EPYC, the six that
no claim needs half an hour. The six of digits that claims need were trained on one H200.
Result: docs/results/vision.md, of the values in docs/results/vision.csv.gz.
"""

import functools
from typing import Literal

from ml_collections import ConfigDict

SOURCE = "the debate that founded the lab: docs/science.md"
SEEDS = (0, 1, 2, 3, 4)
# Seeds 0 to 4 left open whether attention is drawn to marks, and whether a ViT beats a CNN nearby.
FRESH = tuple(range(5, 15))
SEES_ALL = "cnn_2d that sees all"
NO_POSITION = "ViT without positions"
SIGN = "the sign alone is asked for"
HALF = "chance is 0.5 and all is 1: 0.2 is ten times what reports call equal (0.02)"
POINT = "0.05 is a tenth of what lies between chance and all"
TWICE = "half as much again as by area is what a reader would call concentrated"


def _entry(recipe: str, steps: int, task: dict, model: dict, variants: dict, rates: tuple[float, ...]) -> dict:
    training = {"steps": steps, "batch_size": 64, "evaluate_every": steps // 10, "checkpoint_every": steps}
    return {
        "recipe": f"../{recipe}.py",
        "overrides": {
            "task": task,
            "model": model,
            "optimizer": {"name": "adamw", "warmup_steps": 20, "schedule": "cosine"},
            "training": training | {"steps_per_call": steps // 10, "evaluate_batch_size": 512},
        },
        "variants": variants,
        "threshold": 0.9,
        "learning_rates": rates,
    }


def _marks(distance: int, relation: str, variants: dict, steps: int = 600, seeds: tuple[int, ...] = FRESH) -> dict:
    # With noise nobody is always right, so that two who know the answer still differ by what they read in it.
    task = {"distance": distance, "relation": relation, "noise": 0.5, "evaluation_examples": 1024}
    model = {"width": 20, "ffn": {"expansion": 2.0}}
    return _entry("probes/two_marks", steps, task, model, variants, (0.003, 0.01, 0.03)) | {"seeds": seeds}


def _digits(task: dict, variants: dict, steps: int = 400) -> dict:
    model = {"width": 24, "depth": 2, "attention": {"num_heads": 4}, "ffn": {"expansion": 2.0, "activation": "gelu"}}
    return _entry("digits", steps, {"shift": 0} | task, model, variants, (0.003, 0.01, 0.03))


def _cnn(depth: int, kernel_size: int = 3, **more: object) -> dict:
    return {"ablation": "cnn_2d", "model": {"depth": depth, "kernel_size": kernel_size} | more}


def _ask(name: str, question: str, more: tuple[str, str], less: tuple[str, str] | None, **options: object) -> dict:
    parts = {"more": dict(zip(("task", "variant"), more, strict=True))}
    parts["less"] = None if less is None else dict(zip(("task", "variant"), less, strict=True))
    return {"name": name, "question": question, "threshold": 0.0, "because": SIGN} | parts | options


def _looks(name: str, question: str, task: str, variant: str, measure: str) -> dict:
    """Is the share of the objects, relative to their area, larger after training than before it?"""
    parts = {
        side: {"task": task, "variant": variant, "measure": f"object_{measure}{state}"}
        for side, state in (("more", ""), ("less", "_untrained"))
    }
    return {"name": name, "question": question, "threshold": 0.5, "because": TWICE} | parts


def _conclude(verdict: str, reason: str, **when: str) -> dict:
    return {"verdict": verdict, "reason": reason, "when": when}


VIT = "baseline"
CLAIMS = (
    {
        "name": "C14",
        "statement": "Vision Transformers are near-sighted and do not beat CNNs on small data.",
        "source": SOURCE,
        "comparisons": (
            _ask(
                "loses",
                "marks: does a ViT lose from 2 cells apart to 12?",
                ("marks 2 apart", VIT),
                ("marks 12 apart", VIT),
                threshold=0.05,
                because=POINT,
            ),
            _ask(
                "sees",
                "marks 12 apart: does a ViT beat a CNN that sees 4 apart?",
                ("marks 12 apart", VIT),
                ("marks 12 apart", "cnn_2d"),
                threshold=0.2,
                because=HALF,
            ),
            _ask("few", "100 digits: does a CNN beat a ViT?", ("100 digits", "cnn_2d"), ("100 digits", VIT)),
            _ask("all", "1,197 digits: does a CNN beat a ViT?", ("digits", "cnn_2d"), ("digits", VIT)),
            _ask(
                "moved",
                "digits moved in the test alone: does a CNN beat a ViT?",
                ("moved digits", "cnn_2d"),
                ("moved digits", VIT),
            ),
        ),
        "conclusions": (
            _conclude(
                "supported only when",
                "near sight means little data and not distance: a ViT relates marks far apart as well as nearby, which "
                "a CNN of small windows cannot; on few digits, and on moved ones, the CNN wins",
                loses="no",
                sees="yes",
                few="yes",
                moved="yes",
            ),
            _conclude(
                "supported only when",
                "near sight means little data and not distance: a ViT relates marks far apart as well as nearby, which "
                "a CNN of small windows cannot; on few digits the CNN wins",
                loses="no",
                sees="yes",
                few="yes",
            ),
            _conclude(
                "supported only when",
                "digits are moved in the test alone: a ViT relates marks far apart as well as nearby, and is as good "
                "on few digits",
                loses="no",
                sees="yes",
                few="no",
                moved="yes",
            ),
            _conclude("supported", "a ViT loses with distance, and on few digits", loses="yes", few="yes"),
            _conclude(
                "refuted",
                "a ViT sees as far as it must, and on few digits a CNN is no better",
                loses="no",
                sees="yes",
                few="no",
            ),
            _conclude(
                "supported only when",
                "distance is meant: a ViT loses with it, or relates marks far apart no better than a CNN that does not "
                "see them; on few digits a CNN is no better",
                few="no",
            ),
            _conclude("supported only when", "data are few: distance does not decide"),
        ),
    },
    {
        "name": "C5",
        "statement": "Attention captures more relations than a convolution.",
        "source": SOURCE,
        "comparisons": (
            _ask("near", "marks 2 apart: does a ViT beat a CNN?", ("marks 2 apart", VIT), ("marks 2 apart", "cnn_2d")),
            _ask(
                "far",
                "marks 12 apart: does a ViT beat a CNN that sees 4 apart?",
                ("marks 12 apart", VIT),
                ("marks 12 apart", "cnn_2d"),
                threshold=0.2,
                because=HALF,
            ),
            _ask(
                "wide",
                "marks 12 apart: does a ViT beat a CNN that sees all?",
                ("marks 12 apart", VIT),
                ("marks 12 apart", SEES_ALL),
                threshold=0.05,
                because=POINT,
            ),
            _ask("digits", "1,197 digits: does a ViT beat a CNN?", ("digits", VIT), ("digits", "cnn_2d")),
        ),
        "conclusions": (
            _conclude(
                "supported only when",
                "the relation in an image lies beyond what the convolution sees: nearby, with windows wide enough, and "
                "on digits, attention captures no more",
                near="no",
                far="yes",
                wide="no",
                digits="no",
            ),
            _conclude(
                "supported only when",
                "the relation in an image is far away: then attention captures more than a convolution of either "
                "window; nearby and on digits it does not",
                near="no",
                far="yes",
                wide="yes",
                digits="no",
            ),
            _conclude(
                "supported only when",
                "two marks are to be related, far away or nearby within these updates: there attention captures more "
                "than a convolution of either window; on digits it does not",
                near="yes",
                far="yes",
                wide="yes",
                digits="no",
            ),
            _conclude(
                "supported only when",
                "windows are small: then attention captures more of marks, nearby and far away; with windows wide "
                "enough and on digits it does not",
                near="yes",
                far="yes",
                wide="no",
                digits="no",
            ),
            _conclude("supported", "attention learns more on digits too", far="yes", digits="yes"),
            _conclude(
                "refuted",
                "a convolution learns what attention learns",
                near="no",
                far="no",
                wide="no",
                digits="no",
            ),
            _conclude("supported only when", "relation and convolution are the right ones: some lose and some do not"),
        ),
    },
    {
        "name": "C22",
        "statement": "Attention concentrates on what people would call the key parts, hence its near sight.",
        "source": SOURCE,
        "comparisons": (
            _looks("attention", "one digit among clutter: is attention drawn to it?", "scenes", VIT, "attention"),
            _looks("saliency", "one digit among clutter: is a ViT's gradient?", "scenes", VIT, "saliency"),
            _looks("cnn", "one digit among clutter: is a CNN's gradient?", "scenes", "cnn_2d", "saliency"),
            _looks("marks", "marks 12 apart: is attention drawn to both?", "marks 12 apart", VIT, "attention"),
            _looks("gradient", "marks 12 apart: is a ViT's gradient?", "marks 12 apart", VIT, "saliency"),
        ),
        "conclusions": (
            _conclude(
                "supported only when",
                "nothing follows for its sight: training draws attention to the key parts, also to marks at both ends "
                "of an image",
                attention="yes",
                marks="yes",
            ),
            _conclude(
                "supported only when",
                "the key parts are all there is: training draws attention to marks alone in an image, at both ends of "
                "it, and not to a digit among clutter",
                attention="no",
                marks="yes",
            ),
            _conclude("supported", "training draws attention to a digit among clutter", attention="yes"),
            _conclude("refuted", "training does not draw attention to the key parts"),
        ),
    },
)


SHORT = {  # what C14 and C5 need
    "marks 2 apart": ("cnn_2d",),
    "marks 12 apart": ("cnn_2d", SEES_ALL),
    "100 digits": ("cnn_2d",),
    "digits": ("cnn_2d",),
    "moved digits": ("cnn_2d",),
}


def get_config(form: Literal["", "short"] = "") -> ConfigDict:
    """The ablation; in short with fewer seeds, half the updates of marks, and without scenes."""
    marks = functools.partial(_marks, steps=300, seeds=SEEDS) if form == "short" else _marks
    scenes = {"canvas": 24, "item_size": 10.0, "evaluation_examples": 512}
    tasks = {
        "marks 2 apart": marks(2, "alike", {"cnn_2d": _cnn(1)}),
        "marks 12 apart": marks(
            12,
            "alike",
            {
                "cnn_2d": _cnn(1),
                "cnn_2d with positions": _cnn(1, position="learned"),
                SEES_ALL: _cnn(2, 5),
                NO_POSITION: {"model": {"position": "off"}},
            },
        ),
        "left or right": marks(12, "order", {SEES_ALL: _cnn(2, 5), NO_POSITION: {"model": {"position": "off"}}}),
        "100 digits": _digits({"training_examples": 100}, {"cnn_2d": "cnn_2d"}, steps=200),
        "digits": _digits(
            {},
            {
                "cnn_2d": "cnn_2d",
                "resnet": "resnet",
                "resnet, groups": {"ablation": "resnet", "model": {"norm": {"kind": "groupnorm"}}},
                "convnext": {"ablation": "convnext", "model": {"kernel_size": 3}},
                "mixer": "mixer",
                "ViT, stem of convolutions": {"task": {"stem": "convolutions"}},
            },
        ),
        "moved digits": _digits({"border": 2, "evaluation_shift": 2}, {"cnn_2d": "cnn_2d"}),
        "scenes": _entry(
            "scene_classification",
            600,
            scenes,
            {"width": 32, "depth": 2, "attention": {"num_heads": 4}, "ffn": {"expansion": 2.0}},
            {"cnn_2d": "cnn_2d"},
            (0.003, 0.01, 0.03),
        ),
    }
    if form == "short":
        kept = {name: {each: tasks[name]["variants"][each] for each in names} for name, names in SHORT.items()}
        tasks = {name: tasks[name] | {"variants": variants} for name, variants in kept.items()}
    return ConfigDict(
        {
            "question": "Are vision Transformers near-sighted, and where do they look?",
            "tasks": tasks,
            "match": "parameters",
            "match_tolerance": 0.08,
            "seeds": SEEDS,
            "search_seeds": 2 if form == "short" else 0,
            "claims": CLAIMS[:2] if form == "short" else CLAIMS,
        }
    )
