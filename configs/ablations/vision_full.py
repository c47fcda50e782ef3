"""ViT beside convolutions on Fashion-MNIST: number of images, patch size, resolution and translation.

No claim rests on it: it takes a GPU, and data that does not ship with the lab (tools/fetch_fashion_mnist.py places it,
or TFDS downloads it). The variants are within 5% of the baseline's parameters; --config.match=flops makes them cost the
same instead.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/vision_full.py --workdir=runs/vision_full
Time, result: not run as a whole yet.
"""

from ml_collections import ConfigDict

CNN = {"cnn_2d": "cnn_2d"}
OTHERS = {
    "resnet": "resnet",
    "resnet, groups": {"ablation": "resnet", "model": {"norm": {"kind": "groupnorm"}}},
    "convnext": "convnext",
    "mixer": "mixer",
    "ViT, stem of convolutions": {"task": {"stem": "convolutions"}},
}
CHANGES = {"shift": 2, "flip": True, "cutout": 7, "mixup": 0.2}


def _entry(task: dict, variants: dict, steps: int = 4000) -> dict:
    training = {"steps": steps, "batch_size": 128, "evaluate_every": steps // 10, "checkpoint_every": steps}
    return {
        "recipe": "../fashion_mnist.py",
        "overrides": {
            "task": {"shift": 0, "flip": False} | task,
            "training": training | {"steps_per_call": steps // 40, "evaluate_batch_size": 1000},
        },
        "variants": variants,
        "threshold": 0.85,
    }


def get_config() -> ConfigDict:
    """The ablation."""
    few = {f"{number} images": _entry({"training_examples": number}, CNN, 2000) for number in (100, 1000, 10_000)}
    return ConfigDict(
        {
            "question": "What do a vision Transformer and convolutions need of images?",
            "tasks": few
            | {
                "all images": _entry({}, CNN | OTHERS),
                "all images, augmented": _entry(CHANGES, CNN),
                "patches of 2": _entry({"patch_size": 2}, CNN),
                "patches of 7": _entry({"patch_size": 7}, CNN),
                "half the resolution": _entry({"image_size": (14, 14), "patch_size": 2}, CNN),
                "moved in the test": _entry({"border": 4, "evaluation_shift": 4}, CNN),
            },
            "learning_rates": (0.001, 0.003, 0.01),
            "match": "parameters",
            "match_tolerance": 0.05,
            "seeds": (0, 1, 2, 3, 4),
        }
    )
