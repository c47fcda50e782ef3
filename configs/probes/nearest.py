"""P4: the nearest of eight unit vectors.

The comparison needs all features in one dot product: one head of 8 beats eight heads of 1.

Command: python train.py --config=configs/probes/nearest.py
Variants to try: --config.model.attention.num_heads=8 with head_dim=1 or 8
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 19 s (8 heads of 1: 16 s, 8 heads of 8: 40 s).
Result: R2 0.983; 8 heads of 1 0.378, 8 heads of 8 0.985.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "nearest"},
            "model": {
                "width": 64,
                "depth": 1,
                "attention": {"num_heads": 1, "head_dim": 8},
                "ffn": {"kind": "off"},
                "norm": {"kind": "off"},
                "position": "off",
                "bias": False,
            },
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 50, "clip_norm": 1.0},
            "training": {
                "steps": 3000,
                "batch_size": 256,
                "evaluate_every": 750,
                "checkpoint_every": 3000,
                "steps_per_call": 50,
                "evaluate_batch_size": 1024,
            },
        }
    )
