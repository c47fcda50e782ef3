"""P3: four pointers to follow at once.

One layer with H heads and input-independent value content: R2 <= min(H, 4) / 4, whatever FFN follows.

Command: python train.py --config=configs/probes/pointers.py
Variants to try: --config.model.attention.num_heads=1 (0.25), 2 (0.5), 8; --ablation=mean_attention (1/8)
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 28 s (1 head 19 s).
Result: R2 1.000; 2 heads 0.502, 1 head 0.278, mean attention 0.126.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "pointers"},
            "model": {
                "width": 64,
                "depth": 1,
                "attention": {"num_heads": 4, "head_dim": 16},
                "ffn": {"kind": "off"},
                "norm": {"kind": "off"},
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
