"""Does attention capture more than convolutions and recurrences? Claims C5 and C16, at equal parameters.

A marked token nearby and far away, keys whose values were given before (nearby and three times as far), and handwritten
digits, all within 3.5% of the baseline's parameters. A convolution sees as far as its depth and kernel let it; with a
wide kernel it sees everything here.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/context.py --workdir=runs/context
Hardware: 2 cores of an AMD EPYC, and an NVIDIA H200 for the task `far`.
Result: docs/results/context.md, of the values in docs/results/context.csv.gz.
"""

from ml_collections import ConfigDict

SOURCE = "the debate that founded the lab: docs/science.md"
RECURRENT = {"lstm": "lstm", "gru": "gru"}
RECALL = ("recall", "recall longer", "recall 3 times as far")
MORE = 0.2
FIFTH = "a fifth of the score's range is ten times what reports call equal (0.02): who loses it lacks what is asked"
SIGN = "the sign alone is asked for"


def _convolution(kernel_size: int) -> dict:
    return {"ablation": "cnn_1d", "model": {"kernel_size": kernel_size}}


def _entry(recipe: str, steps: int, task: dict, model: dict, variants: dict, rates: tuple[float, ...]) -> dict:
    training = {"steps": steps, "batch_size": 64, "evaluate_every": steps // 10, "checkpoint_every": steps}
    return {
        "recipe": f"../{recipe}.py",
        "overrides": {
            "task": task,
            "model": model,
            "optimizer": {"name": "adamw", "warmup_steps": 20},
            "training": training | {"evaluate_batch_size": 300 if recipe == "digits" else 1024},
        },
        "variants": variants,
        "threshold": 0.9,
        "learning_rates": rates,
    }


def _marked(tokens: int, distance: int, hidden: int, variants: dict, steps: int, rates: tuple[float, ...]) -> dict:
    """With as many hidden units as make the parameters those of a convolution of some width."""
    task = {"tokens": tokens, "distance": distance, "evaluation_examples": 1024}
    model = {"width": 16, "depth": 2, "attention": {"num_heads": 2}, "ffn": {"expansion": hidden / 16}}
    return _entry("probes/long_range", steps, task, model, variants, rates)


def _recall(length: int, variants: dict, steps: int = 400) -> dict:
    """Two pairs; the questions come at random places, all as likely."""
    task = {"vocabulary": 16, "sequence_length": length, "pairs": 2, "power": 1.0, "evaluation_examples": 1024}
    return _entry("probes/recall", steps, task, {"width": 32}, variants, (0.01, 0.03, 0.1))


def _more(name: str, question: str, task: str, variant: str, threshold: float = MORE) -> dict:
    return {
        "name": name,
        "question": question,
        "more": {"task": task},
        "less": {"task": task, "variant": variant},
        "threshold": threshold,
        "because": FIFTH if threshold else SIGN,
    }


def _conclude(verdict: str, reason: str, **when: str) -> dict:
    return {"verdict": verdict, "reason": reason, "when": when}


CLAIMS = (
    {
        "name": "C5",
        "statement": "Attention captures more relations than a convolution.",
        "source": SOURCE,
        "comparisons": (
            _more("near", "4 back: does attention beat a convolution that sees 8 back?", "near", "cnn_1d"),
            _more("far", "24 back: does it beat a convolution that sees 8 back?", "far", "cnn_1d"),
            _more("wide", "24 back: does it beat one that sees 32 back?", "far", "cnn_1d, kernel of 9"),
            _more("recall", "recall: does it beat one that sees everything?", "recall", "cnn_1d, kernel of 5"),
            _more(
                "recall longer",
                "recall, 16 times the updates: does it beat one that sees everything?",
                "recall longer",
                "cnn_1d, kernel of 5",
            ),
            _more("digits", "digits: does it beat a convolution?", "digits", "cnn_2d", 0.0),
        ),
        "conclusions": (
            _conclude(
                "supported only when",
                "the relation lies beyond what the convolution sees, or is found by its content: then attention learns "
                "what the convolution does not; nearby, with a kernel wide enough and on digits it captures no more",
                **{"near": "no", "far": "yes", "wide": "no", "recall": "yes", "recall longer": "yes", "digits": "no"},
            ),
            _conclude(
                "supported only when",
                "the relation lies beyond what the convolution sees, or is found by its content within few updates: "
                "with sixteen times as many the convolution finds it too; nearby, with a kernel wide enough and on "
                "digits attention captures no more",
                near="no",
                far="yes",
                wide="no",
                recall="yes",
                digits="no",
            ),
            _conclude(
                "supported only when",
                "the relation lies beyond what the convolution sees; nearby and on digits attention captures no more",
                near="no",
                far="yes",
                digits="no",
            ),
            _conclude(
                "supported only when",
                "the relation is found by its content: at a fixed distance and on digits attention captures no more",
                **{"near": "no", "far": "no", "wide": "no", "recall": "yes", "recall longer": "yes", "digits": "no"},
            ),
            _conclude("supported", "attention learns more on digits too", far="yes", digits="yes"),
            _conclude(
                "refuted",
                "a convolution learns what attention learns",
                **{"near": "no", "far": "no", "wide": "no", "recall": "no", "recall longer": "no", "digits": "no"},
            ),
            _conclude("supported only when", "relation and convolution are the right ones: some lose and some do not"),
        ),
    },
    {
        "name": "C16",
        "statement": "Transformers capture more context than recurrent networks.",
        "source": SOURCE,
        "comparisons": tuple(
            _more(f"{task} {variant}", f"{asked}: does attention beat {name}?", task, variant)
            for task, asked in (
                ("far", "one marked token, 24 back"),
                ("recall", "keys among 12 tokens"),
                ("recall longer", "keys among 12 tokens, 16 times the updates"),
                ("recall 3 times as far", "keys among 36 tokens"),
            )
            for variant, name in (("lstm", "an LSTM"), ("gru", "a GRU"))
        ),
        "conclusions": (
            _conclude(
                "supported only when",
                "what is asked for is found by its content: an LSTM keeps one marked token over 24 others as well",
                **{"far lstm": "no"},
                **{f"{task} {name}": "yes" for task in RECALL for name in RECURRENT},
            ),
            _conclude(
                "supported only when",
                "what is asked for is found by its content and updates are few: with sixteen times as many a "
                "recurrence answers keys among 12 tokens as well, and an LSTM keeps one marked token over 24 others",
                **{"far lstm": "no"},
                **{f"recall{far} {name}": "yes" for far in ("", " 3 times as far") for name in RECURRENT},
            ),
            _conclude(
                "supported only when",
                "what is asked for is found by its content and lies far back: an LSTM keeps one marked token, and a "
                "recurrence answers keys among 12 tokens, as well",
                **{"far lstm": "no"},
                **{f"recall 3 times as far {name}": "yes" for name in RECURRENT},
            ),
            _conclude(
                "supported",
                "within equal parameters and updates both recurrences lose in every task",
                **{f"{task} {name}": "yes" for task in ("far", *RECALL) for name in RECURRENT},
            ),
            _conclude(
                "refuted",
                "an LSTM keeps one marked token, and recurrences answer keys, as well, nearby and far back",
                **{"far lstm": "no"},
                **{f"{task} {name}": "no" for task in RECALL for name in RECURRENT},
            ),
            _conclude(
                "supported only when", "the recurrence and the task are the right ones: some lose and some do not"
            ),
        ),
    },
)


def get_config() -> ConfigDict:
    """The ablation."""
    kernels = {"cnn_1d": "cnn_1d", "cnn_1d, kernel of 9": _convolution(9)}
    return ConfigDict(
        {
            "question": "Does attention capture more context than convolutions and recurrences?",
            "tasks": {
                "near": _marked(16, 4, 70, {"cnn_1d": "cnn_1d"}, 600, (0.003, 0.01, 0.03)),
                # Half of these updates of the seeds 0 to 4 left the recurrences open: some seeds were late.
                "far": {"seeds": tuple(range(5, 15))}
                | _marked(32, 24, 66, kernels | RECURRENT, 1200, (0.003, 0.01, 0.03, 0.1)),
                "recall": _recall(12, {"cnn_1d, kernel of 5": _convolution(5)} | RECURRENT),
                # Who only guesses has a flat curve too, so the updates are asked for as well. Eight times those of the
                # seeds 0 to 4 left it open: three of five had learned it without attention.
                "recall longer": {
                    "seeds": tuple(range(5, 15)),
                    "search_seeds": 2,
                    "variant_rates": {"baseline": (0.0003, 0.001, 0.003)},
                }
                | _recall(12, {"cnn_1d, kernel of 5": _convolution(5)} | RECURRENT, 16 * 400)
                | {"learning_rates": (0.003, 0.01, 0.03)},
                "recall 3 times as far": _recall(36, RECURRENT),
                "digits": _entry(
                    "digits",
                    1200,
                    {},
                    {"width": 16, "depth": 2, "ffn": {"expansion": 69 / 16}},
                    {"cnn_2d": "cnn_2d"},
                    (0.01, 0.03, 0.1),
                ),
            },
            "match": "parameters",
            "match_tolerance": 0.035,
            "score_tolerance": 0.01,  # who only guesses does so at every rate
            "seeds": (0, 1, 2, 3, 4),
            "claims": CLAIMS,
        }
    )
