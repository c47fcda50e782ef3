"""Beijing's air, seven channels an hour: the next 96 hours from the last 96, by a small PatchTST (Nie et al. 2023).

Command: python train.py --config=configs/forecasting.py
The bar: python tools/forecast_baselines.py
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
                "missing": "forward",  # as in the published figures; mask does not count what was filled
                "tokens": "patch",
                "channels": "independent",
                "instance_norm": "revin",
                "marks": False,
            },
            "model": {
                "width": 64,
                "depth": 2,
                "attention": {"num_heads": 8, "residual_scores": True},
                "ffn": {"expansion": 2.0},
                "norm": {"kind": "batchnorm", "placement": "post", "outer": "off", "epsilon": 1e-5},
                "position": "uniform",
                "dropout": 0.1,
            },
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 20},
            "training": {
                "steps": 400,
                "batch_size": 32,
                "evaluate_every": 200,
                "evaluate_batch_size": 256,
                "checkpoint_every": 200,
                "steps_per_call": 10,
            },
        }
    )
