"""The class of a handwritten digit somewhere on a canvas of 32 x 32 pixels, among pieces of others.

Command: python train.py --config=configs/scenes.py
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: TIME
Result: RESULT
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "task": {"name": "scene_classification", "patch_size": 4},
            "model": {"width": 64, "depth": 3, "attention": {"num_heads": 4}, "ffn": {"expansion": 2.0}},
            "optimizer": {"name": "adamw", "learning_rate": 0.003, "warmup_steps": 50, "schedule": "linear"},
            "training": {
                "steps": 3000,
                "batch_size": 64,
                "evaluate_every": 500,
                "checkpoint_every": 3000,
                "steps_per_call": 50,
                "evaluate_batch_size": 512,
            },
        }
    )
