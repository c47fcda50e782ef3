"""AutoInt (Song et al. 2019): attention over ten fields. AutoInt+ has a perceptron beside it: task.deep=256,128.

Command: python train.py --config=configs/recommenders/autoint.py
Variants to try: --config.task.dataset=lab_flight_fields/by_rows, --config.model.width=64
Hardware: 2 cores of an AMD EPYC, no accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The training run."""
    return ConfigDict(
        {
            "task": {"name": "click"},
            "model": {"name": "autoint", "width": 16, "depth": 3, "num_heads": 2},
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
