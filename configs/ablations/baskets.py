"""Which models rank what a user buys next, and what of it is new to the user?

By time, the first basket of 1,259 users after nine of ten items were bought, from all that came before that moment;
at an earlier moment, where two half-lives of the weights are compared; and leaving out each user's last first
purchase, the control that shows an artefact: what comes last on an invoice lies in the basket before.

Beside every model stand popularity, popularity of the last 30 days, a Markov chain of items, EASE (Steck 2019) and each
user's own frequencies.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/baskets.py --workdir=runs/baskets
    `baskets.py:short`: by time, four models and the controls, one seed, 10 minutes on 2 cores of an AMD EPYC
Result: docs/results/baskets.md, of the cells of baskets_part.py; the others are not trained yet.
"""

from typing import Literal

from ml_collections import ConfigDict

RATES = (0.001, 0.003, 0.01)
NEXT = {"tokens": "item", "events": 100, "baskets": 64, "repeats": False, "half_life": None}
MASKED = {"task": NEXT | {"objective": "masked"}, "model": {"causal": False}, "training": {"steps": 1200}}
GRU = {"ablation": "gru", "task": NEXT}
CONTROLS = {
    "popularity": {"control": "popularity"},
    "popularity of 30 days": {"control": "recent_popularity"},
    "Markov chain": {"control": "markov"},
    "EASE": {"control": "ease"},
    "personal frequency": {"control": "personal"},
}


def _entry(recipe: str, variants: dict, **task: object) -> dict:
    return {
        "recipe": f"../recommenders/{recipe}.py",
        "overrides": {"task": task, "training": {"steps_per_call": 50}},
        "learning_rates": RATES,
        "variants": variants | CONTROLS,
    }


def _whole() -> dict:
    """Every task."""
    return {
        "by time": _entry(
            "baskets",
            {
                "no repeats": {"task": {"repeats": False}},
                "attention off": "attention_off",
                "per dimension": "per_dimension",
                "SASRec": {"task": NEXT},
                "SASRec, half-life": {"task": NEXT | {"half_life": 30.0}},
                "GRU4Rec": GRU,
                "BERT4Rec": MASKED,
            },
        ),
        "earlier": _entry(
            "baskets",
            {"no half-life": {"task": {"half_life": None}}}
            | {f"half-life of {days}": {"task": {"half_life": float(days)}} for days in (15, 60, 120)},
            cut=0.8,
        ),
        "leave one out": _entry("sasrec", {"GRU4Rec": "gru"}, split="last"),
    }


def get_config(form: Literal["", "short"] = "") -> ConfigDict:
    """The ablation: in short, by time, the Transformer of baskets with and without its parts, and a small SASRec."""
    if form == "short":
        models = {"no repeats": {"task": {"repeats": False}}, "attention off": "attention_off"}
        models["SASRec, 50 items"] = {"task": NEXT | {"events": 50}}
        tasks, seeds = {"by time": _entry("baskets", models)}, (0,)
    else:
        tasks, seeds = _whole(), (0, 1, 2, 3, 4)
    question = "Which models rank what a user buys next?"
    return ConfigDict({"question": question, "tasks": tasks, "max_extensions": 0, "seeds": seeds})
