"""Objects in scenes: a detector on canvases of 64 x 64 with one to four digits among clutter."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """DETR."""
    return ConfigDict(
        {
            "task": {"name": "scenes", "detector": "detr", "queries": 16},
            "model": {
                "name": "encoder_decoder",
                "width": 64,
                "encoder_depth": 2,
                "depth": 2,
                "attention": {"num_heads": 4},
                "position": "off",
            },
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "warmup_steps": 100, "clip_norm": 1.0},
            "training": {
                "steps": 3000,
                "batch_size": 32,
                "evaluate_every": 500,
                "checkpoint_every": 3000,
                "steps_per_call": 50,
            },
        }
    )
