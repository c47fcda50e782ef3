"""FEDformer (Zhou et al. 2022): Autoformer's blocks around maps of random Fourier modes.

Command: python train.py --config=configs/forecasters/fedformer.py
On multiwavelets: --config.model.attention.kind=wavelet --config.model.attention.mix_axes=false.
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
                "attention": {"kind": "frequency", "num_heads": 8, "modes": 32, "mix_axes": True},
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
