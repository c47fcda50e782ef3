"""iTransformer (Liu et al. 2024): a token is a variate's whole lookback, so attention mixes channels and not time.

Command: python train.py --config=configs/forecasters/itransformer.py
The hours and days of the lookback are tokens too. Results: docs/forecasting.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "task": {
                "name": "forecasting",
                "dataset": "lab_beijing_air",
                "lookback": 96,
                "horizon": 96,
                "missing": "forward",
                "tokens": "variate",
                "instance_norm": "revin",
            },
            "model": {
                "width": 64,
                "depth": 2,
                "attention": {"num_heads": 8},
                "ffn": {"expansion": 2.0},
                "norm": {"placement": "post", "outer": "end", "epsilon": 1e-5},
                "position": "off",
                "dropout": 0.1,
            },
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 20},
            "training": {
                "steps": 1000,
                "batch_size": 32,
                "evaluate_every": 250,
                "checkpoint_every": 250,
                "steps_per_call": 25,
            },
        }
    )
