"""Each time step is a token of all channels, as in Informer: attention mixes time, and the embedding mixes channels.

Command: python train.py --config=configs/forecasters/steps.py
An LSTM in its place: --ablation=lstm
Results: docs/forecasting.md.
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
                "tokens": "step",
                "head": "last",
                "instance_norm": "revin",
            },
            "model": {
                "width": 64,
                "depth": 2,
                "attention": {"num_heads": 8},
                "ffn": {"expansion": 2.0},
                "position": "sinusoidal",
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
