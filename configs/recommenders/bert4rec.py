"""BERT4Rec (Sun et al. 2019): a Transformer that guesses masked items from both sides.

Command: python train.py --config=configs/recommenders/bert4rec.py
Variants to try: --config.task.split=last
Hardware: 2 cores of an AMD EPYC, no accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The training run."""
    return ConfigDict(
        {
            "task": {"name": "next_basket", "tokens": "item", "objective": "masked", "events": 100, "baskets": 64},
            "model": {"width": 64, "depth": 2, "dropout": 0.2, "attention": {"num_heads": 2}},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "schedule": "cosine"},
            "training": {
                "steps": 1200,
                "batch_size": 64,
                "evaluate_every": 300,
                "checkpoint_every": 1200,
                "evaluate_batch_size": 256,
            },
        }
    )
