"""Beijing's air, seven channels an hour: the next 96 hours from the last 96, by PatchTST with fewer updates.

Command: python train.py --config=configs/forecasting.py
The bar: python tools/forecast_baselines.py
"""

from forecasters import patchtst
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe of configs/forecasters/patchtst.py, shorter."""
    config = patchtst.get_config()
    config.optimizer.learning_rate = 1e-3
    config.training.update({"steps": 400, "evaluate_every": 200, "checkpoint_every": 200, "steps_per_call": 10})
    return config
