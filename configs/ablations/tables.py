"""What do unequal scales cost on real tables, and whom? Claim C2: scalings of five kinds of models on four tables.

The baseline is an FT-Transformer (columns are tokens) of standardised columns. Beside it stand the same with features
that do not mix (`per-dimension`), a residual MLP of the whole row, a linear map and gradient-boosted trees, each with
standardised columns, columns in their own units (`raw`), ranks (`quantile`) and standardised ones times powers of ten
from 10^-2 to 10^2 (`10^a`). Rates are searched on validation, of the trees their size too. `diamonds mended` lacks the
two heights of 31.8 mm that are tested on elsewhere.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/tables.py --workdir=runs/tables
Full: --config=configs/ablations/tables.py:full, with larger models, all pairs and encodings of numbers, for a GPU
Result: docs/results/tables.md, of the values in docs/results/tables.csv.gz.
"""

from typing import Literal

from ml_collections import ConfigDict

SCALINGS = {
    "": {},
    "raw": {"scaling": "none"},
    "quantile": {"scaling": "quantile"},
    "10^a": {"log_scale": 2.0},
}
MLP = {"task": {"tokens": "row", "pooling": "mean"}, "model": {"width": 128, "attention": {"kind": "off"}}}
KINDS = {
    "": {},
    "per-dimension": {"ablation": "per_dimension"},
    "MLP": MLP,
    "linear": {"control": "linear"},
    "trees": {"control": "trees"},
}
ENCODINGS = {
    "piecewise": {"numbers": "piecewise"},
    "periodic": {"numbers": "periodic"},
    "8 members": {"members": 8},
}
GUESS = "a tenth of what lies between a guess and a perfect score"


def _with_task(change: dict, task: dict) -> dict:
    return change | {"task": change.get("task", {}) | task} if task else change


def _named(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _crossed(kinds: dict, settings: dict) -> dict:
    """Each kind with each setting of the task; the baseline is what has no name."""
    pairs = {_named(kind, name): _with_task(kinds[kind], settings[name]) for kind in kinds for name in settings}
    return {name: change for name, change in pairs.items() if name}


def _table(dataset: str, steps: int, variants: dict, **task: object) -> dict:
    name = "tabular_classification" if "metric" in task else "tabular_regression"
    return {
        "recipe": "../tables.py",
        "overrides": {
            "task": {"name": name, "dataset": dataset, "missing": "mean", "pooling": "class_token"} | task,
            "model": {"width": 32, "depth": 2, "ffn": {"expansion": 2.0}},
            "training": {
                "steps": steps,
                "batch_size": 256,
                "evaluate_every": steps // 10,
                "checkpoint_every": steps,
                "evaluate_batch_size": 2048,
            },
        },
        "variants": variants,
    }


ALL = _crossed(KINDS, SCALINGS)
SMALL = {"steps": 300, "batch_size": 128, "evaluate_every": 75, "checkpoint_every": 300}
SHORT = ("raw", "10^a", "MLP", "MLP, raw", "linear", "linear, raw", "trees", "trees, raw")
ENCODED = _crossed({"": {}, "MLP": MLP}, ENCODINGS)
TABLES = {  # how much is lost where a model fails on it
    "flights": (_table("lab_flights", 600, ALL, metric="auc"), 0.05),
    "diamonds": (_table("lab_diamonds", 2000, ALL | ENCODED), 0.1),
    "appliances": (_table("lab_appliances_table", 1000, ALL), 0.1),
    "shuttle": (_table("lab_shuttle", 1000, ALL, metric="accuracy"), 0.007),
}
MENDED = _table("lab_diamonds/mended", 2000, {name: KINDS[name] for name in ("MLP", "linear", "trees")})


def _loss(table: str, variant: str) -> dict:
    """How much the Transformer loses."""
    return {
        "name": f"{table}, {variant}",
        "question": f"does the Transformer fail on {table}, {variant}?",
        "more": {"task": table},
        "less": {"task": table, "variant": variant},
        "threshold": TABLES[table][1],
        "because": GUESS,
    }


def _when(variant: str, answer: str) -> dict:
    return {f"{table}, {variant}": answer for table in TABLES}


CLAIMS = (
    {
        "name": "C2",
        "statement": "Transformers work only where the features' scales were made even; with unequal scales they fail.",
        "source": "the debate that founded the lab: docs/science.md",
        "comparisons": tuple(_loss(table, variant) for variant in ("raw", "10^a") for table in TABLES),
        "conclusions": (
            {
                "verdict": "refuted",
                "reason": "none of four tables is failed in its own units, nor with columns 10,000 times apart",
                "when": _when("raw", "no") | _when("10^a", "no"),
            },
            {
                "verdict": "supported only when",
                "reason": "nothing divides each column by its spread and they are 10,000 times apart; four tables in "
                "their own units are learned",
                "when": _when("raw", "no"),
            },
            {
                "verdict": "supported",
                "reason": "columns in their own units fail on all four tables",
                "when": _when("raw", "yes"),
            },
            {
                "verdict": "supported only when",
                "reason": "nothing divides each column by its spread, and the table's own units lie far enough apart: "
                "some of the four tables fail in them, others do not",
            },
        ),
    },
)


def get_config(form: Literal["", "full"] = "") -> ConfigDict:
    """The ablation in its short form, which decides the claim, or its `full` one."""
    config = ConfigDict(
        {
            "question": "What do unequal scales cost on real tables?",
            "tasks": {name: entry for name, (entry, _) in TABLES.items()} | {"diamonds mended": MENDED},
            "learning_rates": (0.001, 0.003, 0.01),
            "max_extensions": 1,
            "seeds": (0, 1, 2, 3, 4),
            "claims": CLAIMS,
        }
    )
    if form != "full":
        config.update({"learning_rates": (0.003, 0.01, 0.03), "max_extensions": 2})
        for entry in config.tasks.values():
            entry.variants = {name: change for name, change in entry.variants.items() if name in SHORT}
            entry.overrides.model.update({"width": 16, "depth": 1})
            entry.overrides.training.update(SMALL)
    return config
