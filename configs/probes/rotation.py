"""P2: a rotation of a token's features.

Without any path between features R2 <= mean(R_ii^2): 0 for the cyclic shift.

Command: python train.py --config=configs/probes/rotation.py
Variants to try: --ablation=per_dimension (R2 = 0), --config.task.rotation=random, --ablation=linear_only
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 6 s.
Result: R2 1.000; per_dimension 0, of a random rotation 0.030.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "rotation", "features": 32, "embedding": "identity", "head": "identity"},
            "model": {
                "width": 32,
                "depth": 1,
                "attention": {"num_heads": 4},
                "ffn": {"kind": "off"},
                "norm": {"kind": "off"},
                "skip": {"attention": False},
                "position": "off",
                "bias": False,
            },
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 50, "clip_norm": 1.0},
            "training": {
                "steps": 600,
                "batch_size": 256,
                "evaluate_every": 150,
                "checkpoint_every": 600,
                "steps_per_call": 50,
                "evaluate_batch_size": 1024,
            },
        }
    )
