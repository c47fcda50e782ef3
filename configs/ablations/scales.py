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


def _gain(name: str, task: str, threshold: float) -> dict:
    """How much standardising gains."""
    more, less = {"task": task}, {"task": task, "variant": "raw"}
    return {
        "name": name,
        "question": f"does standardising help on {task}?",
        "more": more,
        "less": less,
        "threshold": threshold,
    }


CLAIMS = (
    {
        "name": "C2",
        "statement": "Transformers work only where the features' scales were made even; with unequal scales they fail.",
        "source": "the debate that founded the lab: docs/science.md",
        "comparisons": (
            _gain("little", "nearest_100", 0.05),
            _gain("much", "nearest_10000", 0.05),
            _gain("wine", "wine", 0.02),
            _gain("breast_cancer", "breast_cancer", 0.02),
            {
                "name": "rest",
                "question": "is anything lost that standardising does not give back?",
                "more": {"task": "nearest_1"},
                "less": {"task": "nearest_10000"},
                "threshold": 0.02,
            },
        ),
        "conclusions": (
            {
                "verdict": "refuted",
                "reason": "unequal scales cost nothing",
                "when": {"little": "no", "much": "no", "wine": "no", "breast_cancer": "no"},
            },
            {
                "verdict": "supported only when",
                "reason": "nothing evens the scales first: raw features cost accuracy, and dividing each by its spread "
                "gives it back",
                "when": {"rest": "no"},
            },
            {
                "verdict": "supported",
                "reason": "unequal scales cost accuracy, and standardising them does not give it back",
            },
        ),
    },
)


def get_config() -> ConfigDict:
    """The ablation."""
    return ConfigDict(
        {
            "question": "Do features of unequal scale harm a Transformer?",
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
            "claims": CLAIMS,
        }
    )
