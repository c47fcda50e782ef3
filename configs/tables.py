"""Wines classified by 13 chemical measurements: columns are the tokens of a small Transformer.

Command: python train.py --config=configs/tables.py
Variants to try: --config.task.scaling=none or quantile, --config.task.dataset=lab_breast_cancer, --ablation=mlp
Hardware: 2 cores of an AMD EPYC, no accelerator.
Result: in docs/results/scales.md, with intervals.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "task": {"name": "tabular_classification", "dataset": "lab_wine"},
            "model": {"width": 32, "depth": 2, "attention": {"num_heads": 4}, "position": "off"},
            "optimizer": {"learning_rate": 0.001, "warmup_steps": 20, "weight_decay": 0.01, "clip_norm": 1.0},
            "training": {
                "steps": 500,
                "batch_size": 32,
                "evaluate_every": 100,
                "checkpoint_every": 500,
                "steps_per_call": 50,
            },
        }
    )
