"""Do Transformers work only where the features' scales were made even? Claim C2.

The nearest neighbour with features 100 and 10,000 times apart, a linear target whose features arrive small, and two
tables in the units in which they were taken; each beside the same, standardised feature by feature. An MLP beside the
Transformer tells whether what is lost is lost by attention.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/scales.py --workdir=runs/scales
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 8:55 minutes.
Result: docs/results/scales.md.
"""

from ml_collections import ConfigDict

RAW = {"task": {"standardised": False}}
SMALL = {"a third": 0.316, "a tenth": 0.1, "a thirtieth": 0.032}


def _nearest(log_scale: int) -> dict:
    """P5: standardised is the baseline."""
    return {
        "recipe": "../probes/unequal_scales.py",
        "overrides": {
            "task": {"evaluation_examples": 1024, "log_scale": log_scale, "standardised": True},
            "training": {"steps": 1000, "batch_size": 128, "evaluate_every": 200, "checkpoint_every": 1000},
        },
        "variants": {
            "raw": RAW,
            "raw, RMSNorm": RAW | {"model": {"norm": {"kind": "rmsnorm"}}},
            "raw, LayerNorm": RAW | {"model": {"norm": {"kind": "layernorm"}}},
        },
        "threshold": 0.9,
    }


def _table(dataset: str) -> dict:
    return {
        "recipe": "../tables.py",
        "overrides": {"task": {"dataset": dataset}},
        "variants": {
            "raw": RAW,
            "MLP": "mlp",
            "MLP, raw": RAW | {"ablation": "mlp"},
        },
        "threshold": 0.9,
    }


def get_config() -> ConfigDict:
    """The ablation."""
    return ConfigDict(
        {
            "tasks": {
                "nearest_1": _nearest(0),
                "nearest_100": _nearest(1),
                "nearest_10000": _nearest(2),
                "learning_time": {
                    "recipe": "../probes/learning_time.py",
                    "overrides": {
                        "task": {"evaluation_examples": 1024},
                        "training": {"steps": 4000, "evaluate_every": 50, "checkpoint_every": 4000},
                    },
                    "variants": {name: {"task": {"scale": scale}} for name, scale in SMALL.items()},
                    "threshold": 0.95,
                },
                "wine": _table("lab_wine"),
                "breast_cancer": _table("lab_breast_cancer"),
            },
            "learning_rates": (0.001, 0.003, 0.01),
            "seeds": (0, 1, 2, 3, 4),
            "claims": ("C2",),
        }
    )
