"""P9: the target of each token is the token before it.

Without a token mixer R2 = 0.

Command: python train.py --config=configs/probes/delay.py
Variants to try: --ablation=attention_off (0), --ablation=mean_attention
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 77 s (attention_off 41 s).
Result: R2 1.000; attention_off 0.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "delay"},
            "model": {"width": 64, "depth": 1, "attention": {"num_heads": 4}, "causal": True},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "clip_norm": 1.0},
            "training": {
                "steps": 1500,
                "batch_size": 256,
                "evaluate_every": 375,
                "checkpoint_every": 1500,
                "steps_per_call": 50,
                "evaluate_batch_size": 1024,
            },
        }
    )
