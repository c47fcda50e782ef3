"""A temporal convolutional network (Bai et al. 2018): causal convolutions that reach twice as far in each block.

Command: python train.py --config=configs/forecasters/tcn.py
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
            "model": {"name": "cnn_1d", "width": 64, "depth": 4, "dilation": 2, "causal": True},
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
