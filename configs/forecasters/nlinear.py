"""NLinear (Zeng et al. 2023): one linear map for all channels, of what is left when the last value is subtracted.

Command: python train.py --config=configs/forecasters/nlinear.py
A map for each channel: --config.task.individual=true. Results: docs/forecasting.md.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    """The recipe: a model without blocks, and its head."""
    lookback = FieldReference(96)
    return ConfigDict(
        {
            "task": {
                "name": "forecasting",
                "dataset": "lab_beijing_air",
                "lookback": lookback,
                "horizon": 96,
                "missing": "forward",
                "tokens": "variate",
                "instance_norm": "last",
                "embedding": "identity",
                "marks": False,
            },
            "model": {"width": lookback, "depth": 0, "norm": {"kind": "off"}, "position": "off"},
            "optimizer": {"learning_rate": 5e-3},
            "training": {
                "steps": 1000,
                "batch_size": 32,
                "evaluate_every": 250,
                "checkpoint_every": 250,
                "steps_per_call": 25,
            },
        }
    )
