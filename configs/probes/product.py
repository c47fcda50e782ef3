"""P1: the product of two features of a token.

A network whose token-wise maps are all odd cannot do better than R2 = 0, at any size.

Command: python train.py --config=configs/probes/product.py
Variants to try: --config.model.ffn.activation=tanh (R2 = 0), --ablation=ffn_off (0), --config.model.ffn.kind=bilinear
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 47 s.
Result: R2 1.000; tanh, identity and no FFN 0.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "product", "tokens": 4, "features": 8},
            "model": {
                "width": 64,
                "depth": 2,
                "attention": {"num_heads": 4},
                "ffn": {"activation": "relu"},
                "norm": {"kind": "rmsnorm"},
                "position": "off",
                "bias": False,
            },
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "clip_norm": 1.0},
            "training": {
                "steps": 2000,
                "batch_size": 256,
                "evaluate_every": 500,
                "checkpoint_every": 2000,
                "steps_per_call": 50,
                "evaluate_batch_size": 1024,
            },
        }
    )
