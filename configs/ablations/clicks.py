"""Do wide embeddings replace crosses made by hand? Claim C6.

Crosses whose share is known, planted between four fields; and flights by ten fields, late or not, with whole days
divided and with flights divided at random. Beside a linear model with a weight for every pair of levels stand products
of vectors (a factorization machine), a perceptron on the vectors, attention over them, and width alone.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/clicks.py --workdir=runs/clicks
Short form: --config.seeds=0,1,2 --config.max_extensions=0 --config.decide=C6
"""

from ml_collections import ConfigDict

SOURCE = "the debate that founded the lab: docs/science.md"
CROSSES = 2**16  # rows into which pairs of levels are hashed
DEEP = (256, 128)


def _linear(width: int, **task: object) -> dict:
    """Fields that are only added up, whatever their width, but for what `task` puts beside."""
    model = {"name": "autoint", "width": width, "depth": 0, "num_heads": 1}
    return {"model": model, "task": {"readout": "sum", "own_weights": False} | task}


def _deep(width: int) -> dict:
    return _linear(width, deep=DEEP, own_weights=True)


AUTOINT = {"name": "autoint", "depth": 3, "num_heads": 2}
TRANSFORMER = {"name": "transformer", "depth": 2, "position": "off", "attention": {"num_heads": 2}}
VARIANTS = {
    "linear": _linear(1),
    "crosses": _linear(1, crosses=CROSSES),
    "FM, width of 4": {"model": {"width": 4}},
    "FM, width of 128": {"model": {"width": 128}},
    "perceptron": _deep(16),
    "perceptron, width of 128": _deep(128),
    "AutoInt": {"model": AUTOINT, "task": {"readout": "flat"}},
}
WIDE = {
    "linear, width of 128": _linear(128, readout="flat"),
    "perceptron, width of 4": _deep(4),
    "AutoInt, width of 128": {"model": AUTOINT | {"width": 128}, "task": {"readout": "flat"}},
}
MIXED = {
    "DeepFM": {"task": {"deep": DEEP}},
    "AutoInt and perceptron": {"model": AUTOINT, "task": {"readout": "flat", "deep": DEEP}},
    "Transformer": {"model": TRANSFORMER, "task": {"readout": "mean", "embedding_scale": 0.1}},
    "Transformer and perceptron": {
        "model": TRANSFORMER,
        "task": {"readout": "mean", "embedding_scale": 0.1, "deep": DEEP},
    },
}


def _flights(split: str, variants: dict) -> dict:
    return {
        "recipe": "../recommenders/fm.py",
        "overrides": {"task": {"dataset": f"lab_flight_fields/{split}"}, "training": {"steps_per_call": 50}},
        "learning_rates": (0.001, 0.003, 0.01),
        "variants": variants,
    }


PLANTED = 0.1
BECAUSE = "a tenth of the score's range is five times what reports call equal (0.02): who loses it lacks the crosses"
AUC = 0.01
FLIGHTS = "a hundredth of AUC is more than twice the standard error that 23,000 flights leave, were they independent"


def _loss(name: str, question: str, task: str, more: str, less: str, threshold: float, because: str) -> dict:
    return {
        "name": name,
        "question": question,
        "more": {"task": task, "variant": more},
        "less": {"task": task, "variant": less},
        "threshold": threshold,
        "because": because,
    }


CLAIMS = (
    {
        "name": "C6",
        "statement": "Wide learned embeddings replace hand-made feature crosses (factorization machines).",
        "source": SOURCE,
        "comparisons": (
            _loss(
                "width",
                "planted: do hand-made crosses beat vectors of 128 that are only added up?",
                *("planted", "crosses", "linear, width of 128", PLANTED, BECAUSE),
            ),
            _loss(
                "narrow",
                "planted: do they beat products of narrow vectors, 4 wide?",
                *("planted", "crosses", "FM, width of 4", PLANTED, BECAUSE),
            ),
            _loss(
                "products",
                "planted: do they beat products of wide vectors, 128?",
                *("planted", "crosses", "FM, width of 128", PLANTED, BECAUSE),
            ),
            _loss(
                "perceptron",
                "planted: do they beat a perceptron on wide vectors?",
                *("planted", "crosses", "perceptron, width of 128", PLANTED, BECAUSE),
            ),
            _loss(
                "attention",
                "planted: do they beat attention over wide vectors?",
                *("planted", "crosses", "AutoInt, width of 128", PLANTED, BECAUSE),
            ),
            _loss(
                "day",
                "flights, by day: do they beat a perceptron on wide vectors?",
                *("by day", "crosses", "perceptron, width of 128", AUC, FLIGHTS),
            ),
            _loss(
                "rows",
                "flights, by rows: do they beat it?",
                *("by rows", "crosses", "perceptron, width of 128", AUC, FLIGHTS),
            ),
        ),
        "conclusions": (
            {
                "verdict": "supported only when",
                "reason": "the vectors meet in products or in a perceptron: width alone adds fields up and sees no "
                "cross; and products need width",
                "when": {"width": "yes", "narrow": "yes", "products": "no", "perceptron": "no", "day": "no"},
            },
            {
                "verdict": "supported only when",
                "reason": "the vectors meet in products of enough width: width alone adds fields up and sees no cross",
                "when": {"width": "yes", "narrow": "yes", "products": "no"},
            },
            {
                "verdict": "supported only when",
                "reason": "the vectors meet in something that multiplies: width alone adds fields up",
                "when": {"width": "yes", "day": "no"},
            },
            {"verdict": "refuted", "reason": "crosses made by hand stay ahead of wide vectors"},
        ),
    },
)


def get_config() -> ConfigDict:
    """The ablation."""
    return ConfigDict(
        {
            "question": "Do wide embeddings replace crosses made by hand?",
            "tasks": {
                "planted": {
                    "recipe": "../probes/planted_crosses.py",
                    "overrides": {},
                    "learning_rates": (0.003, 0.01, 0.03),
                    "variants": WIDE,
                    "threshold": 0.9,
                },
                "by day": _flights("by_day", MIXED),
                "by rows": _flights("by_rows", MIXED),
            },
            "variants": VARIANTS,
            "max_extensions": 1,
            "score_tolerance": 0.005,
            "seeds": (0, 1, 2, 3, 4),
            "claims": CLAIMS,
        }
    )
