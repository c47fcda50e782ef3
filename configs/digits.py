"""Handwritten digits, 8 x 8 pixels, classified by a small vision Transformer.

python train.py --config=configs/digits.py
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default recipe."""
    return ConfigDict(
        {
            "seed": 0,
            "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 2, "shift": 1},
            "model": {"width": 64, "depth": 4, "attention": {"num_heads": 4}, "ffn": {"expansion": 4.0}},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup_steps": 20,
                "weight_decay": 0.05,
                "clip_norm": 1.0,
            },
            "training": {
                "steps": 1000,
                "batch_size": 64,
                "evaluate_every": 200,
                "checkpoint_every": 1000,
                "steps_per_call": 20,
            },
        }
    )
