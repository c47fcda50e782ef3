"""How should the columns of your table be scaled, and does attention help on it? Three scalings of two models.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/csv.py --workdir=runs/csv
Yours: --config.tasks.table.overrides.task.dataset='csv:PATH?target=NAME', and for a number
    --config.tasks.table.overrides.task.name=tabular_regression
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 117 seconds of CPU time for 10,000 rows.
Result: docs/data.md.
"""

from ml_collections import ConfigDict


def _scaled(scaling: str, **change: str) -> dict:
    return {"task": {"scaling": scaling}} | change


def get_config() -> ConfigDict:
    """The ablation."""
    return ConfigDict(
        {
            "question": "How should the columns of this table be scaled?",
            "tasks": {
                "table": {
                    "recipe": "../csv.py",
                    "overrides": {
                        "task": {"name": "tabular_classification"},
                        "model": {"width": 16, "depth": 1},
                        "training": {"steps": 600, "evaluate_every": 100, "checkpoint_every": 600},
                    },
                    "variants": {
                        "quantile": _scaled("quantile"),
                        "raw": _scaled("none"),
                        "MLP": "mlp",
                        "MLP, quantile": _scaled("quantile", ablation="mlp"),
                        "MLP, raw": _scaled("none", ablation="mlp"),
                    },
                },
            },
            "learning_rates": (0.01, 0.03, 0.1),
            "max_extensions": 0,
            "seeds": (0, 1, 2),
        }
    )
