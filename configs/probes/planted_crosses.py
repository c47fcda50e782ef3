"""P8 over fields: a known function with a known share of crosses, half of the variance.

Command: python train.py --config=configs/probes/planted_crosses.py
Variants to try: --config.task.interaction_share=0.9, --config.model.width=64
Hardware: 2 cores of an AMD EPYC, no accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "planted_crosses", "readout": "sum"},
            "model": {"name": "field_products", "width": 16},
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 20, "schedule": "cosine"},
            "training": {
                "steps": 1000,
                "batch_size": 256,
                "evaluate_every": 250,
                "checkpoint_every": 1000,
                "steps_per_call": 50,
                "evaluate_batch_size": 1024,
            },
        }
    )
