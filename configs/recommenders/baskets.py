"""A Transformer whose tokens are baskets: which items are in the next one?

Command: python train.py --config=configs/recommenders/baskets.py
Variants to try: --config.task.split=last, --config.task.repeats=false
Hardware: 2 cores of an AMD EPYC, no accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The training run."""
    return ConfigDict(
        {
            "task": {"name": "next_basket", "repeats": True, "half_life": 30.0},
            "model": {"width": 64, "depth": 2, "causal": True, "dropout": 0.2, "attention": {"num_heads": 2}},
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
