"""P1b: the product of three features of a token, by attention alone.

Attention is cubic in its input once there are several tokens; with one token and no norm it is linear, so R2 = 0.

Command: python train.py --config=configs/probes/product_of_three.py
Variants to try: --config.task.tokens=1 (R2 = 0), --config.task.tokens=1 --config.model.norm.kind=rmsnorm
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 47 s (one token 10 s).
Result: R2 0.874; one token 0, with RMSNorm 0.988.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "product", "tokens": 4, "features": 8, "order": 3},
            "model": {
                "width": 64,
                "depth": 2,
                "attention": {"num_heads": 4},
                "ffn": {"kind": "off"},
                "norm": {"kind": "off"},
                "position": "off",
                "bias": False,
            },
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "clip_norm": 1.0},
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
