"""A table of your own, from a CSV file: numbers, categories and dates are the tokens of a small Transformer.

Command: python train.py --config=configs/csv.py
Yours: --config.task.dataset='csv:PATH?target=NAME' (docs/data.md has the options); a number is predicted with
    --config.task.name=tabular_regression
Variants to try: --config.task.scaling=quantile or none, --ablation=mlp
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time and result: docs/data.md, of a table of 10,000 rows. The example has 120 rows to train on, and is learned by heart.
"""

from pathlib import Path

from ml_collections import ConfigDict

HOUSES = Path(__file__).resolve().parents[1] / "examples" / "houses.csv"


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "task": {
                "name": "tabular_classification",
                "dataset": f"csv:{HOUSES}?target=energy&drop=price",
                "missing": "indicator",
            },
            "model": {"width": 32, "depth": 2, "attention": {"num_heads": 4}, "position": "off"},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "weight_decay": 0.01, "clip_norm": 1.0},
            "training": {
                "steps": 1000,
                "batch_size": 64,
                "evaluate_every": 100,
                "checkpoint_every": 1000,
                "steps_per_call": 50,
            },
        }
    )
