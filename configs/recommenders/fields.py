"""The lab's Transformer over ten fields, with every variant: is a flight late by more than 15 minutes?

Command: python train.py --config=configs/recommenders/fields.py
Variants to try: --config.task.dataset=lab_flight_fields/by_rows, --config.model.width=64
Hardware: 2 cores of an AMD EPYC, no accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The training run."""
    return ConfigDict(
        {
            "task": {"name": "click", "readout": "mean", "embedding_scale": 0.1},
            "model": {"width": 16, "depth": 2, "position": "off", "attention": {"num_heads": 2}},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 20, "schedule": "cosine"},
            "training": {
                "steps": 200,
                "batch_size": 1024,
                "evaluate_every": 50,
                "checkpoint_every": 200,
                "evaluate_batch_size": 4096,
            },
        }
    )
