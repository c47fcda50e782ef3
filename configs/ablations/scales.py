"""Do Transformers work only where the features' scales were made even? Claim C2.

The nearest neighbour with features 100 and 10,000 times apart, at a small and at eight times the budget; a linear
target whose features arrive small; and two tables in the units in which they were taken, each split three times, since
one test split of wine has 35 rows. Each stands beside the same, standardised feature by feature.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/scales.py --workdir=runs/scales
Hardware: 2 cores of an AMD EPYC, no accelerator.
Result: docs/results/scales.md, of the values in docs/results/scales.csv.gz.
"""

from ml_collections import ConfigDict

RAW = {"task": {"standardised": False}}
SMALL = {"a third": 0.316, "a tenth": 0.1, "a thirtieth": 0.032}
SHORT, LONG = 500, 4000
SPLITS = {"": None, ", split 1": 1, ", split 2": 2}  # the data set's own, and two of all rows in another order
# To fail is to lose a tenth of the score's range: five times the margin within which reports call two variants equal
# (0.02), and more than three of wine's 35 test rows.
FAILS = 0.1


def _nearest(log_scale: int, steps: int) -> dict:
    """P5: standardised is the baseline."""
    variants = {"raw": RAW, "raw, RMSNorm": RAW | {"model": {"norm": {"kind": "rmsnorm"}}}}
    return {
        "recipe": "../probes/unequal_scales.py",
        "overrides": {
            "task": {"evaluation_examples": 1024, "log_scale": log_scale, "standardised": True},
            "model": {"width": 32},
            "training": {"steps": steps, "batch_size": 64, "evaluate_every": steps // 10, "checkpoint_every": steps},
        },
        "variants": variants,
        "threshold": 0.9,
        "learning_rates": (0.01, 0.03, 0.1),
    }


def _table(dataset: str, split_seed: int | None) -> dict:
    more = {"MLP": "mlp", "MLP, raw": RAW | {"ablation": "mlp"}}  # is what is lost lost by attention?
    return {
        "recipe": "../tables.py",
        "overrides": {
            "task": {"dataset": dataset, "split_seed": split_seed},
            "model": {"width": 16, "depth": 1},
            "training": {"steps": 400, "evaluate_every": 40, "checkpoint_every": 400},
        },
        "variants": {"raw": RAW} | (more if split_seed is None else {}),
        "threshold": 0.9,
        "learning_rates": (0.003, 0.01, 0.03),
    }


TABLES = {
    f"{name}{split}": _table(f"lab_{name}", seed)
    for name in ("wine", "breast_cancer")
    for split, seed in SPLITS.items()
}


def _loss(name: str, task: str, threshold: float = FAILS) -> dict:
    """How much raw features lose."""
    return {
        "name": name,
        "question": f"do raw features fail on {task}?",
        "more": {"task": task},
        "less": {"task": task, "variant": "raw"},
        "threshold": threshold,
    }


CLAIMS = (
    {
        "name": "C2",
        "statement": "Transformers work only where the features' scales were made even; with unequal scales they fail.",
        "source": "the debate that founded the lab: docs/science.md",
        "comparisons": (
            _loss("short", "nearest_100"),
            _loss("long", "nearest_100, 8 times as long"),
            _loss("apart", "nearest_10000"),
            _loss("apart_long", "nearest_10000, 8 times as long"),
            *(_loss(name, name) for name in TABLES),
        ),
        "conclusions": (
            {
                "verdict": "refuted",
                "reason": "unequal scales cost nothing that matters, within either budget",
                "when": {"short": "no", "apart": "no"} | dict.fromkeys(TABLES, "no"),
            },
            {
                "verdict": "supported only when",
                "reason": "nothing divides each feature by its spread and the budget is small for how far apart they "
                "are: features 100 times apart are learned eight times as late, 10,000 times apart not by then; both "
                "tables are learned in their own units",
                "when": {"short": "yes", "long": "no", "apart_long": "yes"} | dict.fromkeys(TABLES, "no"),
            },
            {
                "verdict": "supported only when",
                "reason": "nothing divides each feature by its spread and the budget is small: with eight times the "
                "updates all are learned, and both tables are in their own units",
                "when": {"short": "yes", "long": "no", "apart_long": "no"} | dict.fromkeys(TABLES, "no"),
            },
            {
                "verdict": "supported only when",
                "reason": "nothing divides each feature by its spread and they are 100 times apart or more: raw ones "
                "fail at both budgets; both tables are learned in their own units",
                "when": {"short": "yes", "long": "yes", "apart_long": "yes"} | dict.fromkeys(TABLES, "no"),
            },
            {"verdict": "supported", "reason": "raw features fail on a table too"},
        ),
    },
)


def get_config() -> ConfigDict:
    """The ablation."""
    return ConfigDict(
        {
            "question": "Do features of unequal scale harm a Transformer?",
            "tasks": {
                "nearest_100": _nearest(1, SHORT),
                "nearest_100, 8 times as long": _nearest(1, LONG),
                "nearest_10000": _nearest(2, SHORT),
                "nearest_10000, 8 times as long": _nearest(2, LONG),
                "learning_time": {
                    "recipe": "../probes/learning_time.py",
                    "overrides": {
                        "task": {"evaluation_examples": 1024},
                        "training": {"steps": 4000, "evaluate_every": 50, "checkpoint_every": 4000},
                    },
                    "variants": {name: {"task": {"scale": scale}} for name, scale in SMALL.items()},
                    "threshold": 0.95,
                    "learning_rates": (0.001, 0.003, 0.01),
                },
                **TABLES,
            },
            "seeds": (0, 1, 2, 3, 4),
            "claims": CLAIMS,
        }
    )
