"""P5: the nearest of eight vectors whose features have unequal scales.

Standardising each feature removes the difficulty; a norm over each token does not.

Command: python train.py --config=configs/probes/unequal_scales.py
Variants to try: --config.task.log_scale=0 or 2, --config.model.norm.kind=rmsnorm, --config.task.standardised=true
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 22 s.
Result: R2 0.976; standardised 0.985, RMSNorm 0.315.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "nearest", "log_scale": 1.0},
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
