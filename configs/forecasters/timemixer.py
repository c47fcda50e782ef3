"""TimeMixer (Wang et al. 2024): MLPs over time at four scales, each channel by itself; no attention.

Time-Series-Library's ranking has it first among forecasters whose lookback is searched for, and third at a lookback of
96, behind TimeXer and iTransformer (https://github.com/thuml/Time-Series-Library).

Command: python train.py --config=configs/forecasters/timemixer.py
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
                "channels": "independent",
                "instance_norm": "affine",
            },
            "model": {"name": "timemixer", "width": 16, "depth": 2, "scales": 3},
            "optimizer": {"learning_rate": 5e-3, "warmup_steps": 20},
            "training": {
                "steps": 1000,
                "batch_size": 32,
                "evaluate_every": 250,
                "checkpoint_every": 250,
                "steps_per_call": 25,
            },
        }
    )
