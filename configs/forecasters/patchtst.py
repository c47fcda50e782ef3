"""PatchTST (Nie et al. 2023): patches of each channel by itself, BatchNorm, and scores that add up from block to block.

Command: python train.py --config=configs/forecasters/patchtst.py
Channels in one token: --config.task.channels=mixed. Scores of each block by itself:
--config.model.attention.residual_scores=false.
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
