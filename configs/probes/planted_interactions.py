"""P8: a function with a known share of interaction.

The share is 0.909, which the measures of interaction must find in the trained model.

Command: python train.py --config=configs/probes/planted_interactions.py
Variants to try: --config.task.interaction_share=0.5
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 21 s (factorization machine 8 s).
Result: R2 1.000, of both.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "planted_interactions"},
            "model": {
                "width": 64,
                "depth": 2,
                "attention": {"kind": "off"},
                "ffn": {"activation": "gelu"},
                "position": "off",
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
