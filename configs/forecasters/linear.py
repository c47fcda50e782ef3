"""A linear map from lookback to horizon for each channel, in closed form (ridge regression): the bar for every model.

Command: python train.py --config=configs/forecasters/linear.py
The same of what is left when the last value is subtracted: --config.task.instance_norm=last. One map for all channels:
--config.task.individual=false. Results: docs/forecasting.md.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    """The recipe: NLinear's model, solved and not trained; the one update changes nothing."""
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
                "individual": True,
                "embedding": "identity",
                "marks": False,
            },
            "model": {"width": lookback, "depth": 0, "norm": {"kind": "off"}, "position": "off"},
            "optimizer": {"name": "ridge", "weight_decay": 1.0},
            "training": {"steps": 1, "batch_size": 32, "evaluate_every": 1, "checkpoint_every": 1, "steps_per_call": 1},
        }
    )
