"""Autoformer (Wu et al. 2021): attention to delays, in blocks that take the trend away.

Command: python train.py --config=configs/forecasters/autoformer.py
Other attention in the same blocks: --config.model.attention.kind=softmax.
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
                "label_length": 48,
            },
            "model": {
                "name": "autoformer",
                "width": 64,
                "depth": 1,
                "encoder_depth": 2,
                "moving_average": (25,),
                "attention": {"kind": "autocorrelation", "num_heads": 8, "factor": 3.0},
                "ffn": {"expansion": 2.0},
                "norm": {"epsilon": 1e-5},
                "dropout": 0.1,
            },
            "optimizer": {"learning_rate": 5e-4, "warmup_steps": 20},
            "training": {
                "steps": 1000,
                "batch_size": 32,
                "evaluate_every": 250,
                "checkpoint_every": 250,
                "steps_per_call": 25,
            },
        }
    )
