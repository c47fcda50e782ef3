"""GRU4Rec (Hidasi et al. 2016): a GRU over the items that a user bought, one after the other.

Command: python train.py --config=configs/recommenders/gru4rec.py
Variants to try: --config.task.split=last
Hardware: 2 cores of an AMD EPYC, no accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The training run."""
    return ConfigDict(
        {
            "task": {"name": "next_basket", "tokens": "item", "events": 100, "baskets": 64},
            "model": {"name": "gru", "width": 64, "depth": 1},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "schedule": "cosine"},
            "training": {
                "steps": 600,
                "batch_size": 64,
                "evaluate_every": 150,
                "checkpoint_every": 600,
                "evaluate_batch_size": 256,
            },
        }
    )
