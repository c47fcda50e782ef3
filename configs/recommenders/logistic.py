"""Logistic regression on ten fields: is a flight late by more than 15 minutes?

Command: python train.py --config=configs/recommenders/logistic.py
Variants to try: --config.task.dataset=lab_flight_fields/by_rows, --config.model.width=64
Hardware: 2 cores of an AMD EPYC, no accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The training run."""
    return ConfigDict(
        {
            "task": {"name": "click", "readout": "sum", "own_weights": False},
            "model": {"name": "autoint", "width": 1, "depth": 0, "num_heads": 1},
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 20, "schedule": "cosine"},
            "training": {
                "steps": 200,
                "batch_size": 1024,
                "evaluate_every": 50,
                "checkpoint_every": 200,
                "evaluate_batch_size": 4096,
            },
        }
    )
