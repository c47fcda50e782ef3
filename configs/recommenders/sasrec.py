"""SASRec (Kang and McAuley 2018): a causal Transformer over the items that a user bought, one after the other.

Command: python train.py --config=configs/recommenders/sasrec.py
Variants to try: --config.task.split=last
Hardware: 2 cores of an AMD EPYC, no accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The training run."""
    return ConfigDict(
        {
            "task": {"name": "next_basket", "tokens": "item", "events": 100, "baskets": 64},
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
