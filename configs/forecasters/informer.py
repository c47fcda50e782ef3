"""Informer (Zhou et al. 2021): ProbSparse attention, half as many tokens after each block, and a decoder.

Command: python train.py --config=configs/forecasters/informer.py
Axes merged in one order: --config.model.attention.mix_axes=false. Full attention: --config.model.attention.kind=softmax
as well.
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
                "name": "encoder_decoder",
                "width": 64,
                "depth": 1,
                "encoder_depth": 2,
                "distil": True,
                "masked": True,
                "attention": {
                    "kind": "probsparse",
                    "cross_kind": "softmax",
                    "num_heads": 8,
                    "factor": 5.0,
                    "mix_axes": True,
                },
                "ffn": {"expansion": 2.0},
                "norm": {"placement": "post", "outer": "end", "epsilon": 1e-5},
                "position": "sinusoidal",
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
