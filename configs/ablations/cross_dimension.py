"""Does mixing across features matter, where, and through which part? Claims C1, C3, C4, C7, C8, C10, C11 and C12.

Ten probes whose outcome theory predicts, with every variant that changes something there.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/cross_dimension.py --workdir=runs/cross_dimension
The pairs that claims need, and no others: --config.claims=C1,C3,C4,C7,C8,C10,C11,C12
Hardware: 2 cores of an Intel Xeon, no accelerator.
Time: 14:53 for all 91 pairs, with nothing compiled before.
Result: docs/results/cross_dimension.md, of the values in docs/results/cross_dimension.csv.gz.
"""

from ml_collections import ConfigDict

# Grids begin with the rates that a task's variants want, so that few of them grow.
LOW, HIGH = (0.003, 0.01, 0.03), (0.03, 0.1, 0.3)
VARIANTS = (
    "single_head",
    "ffn_off",
    "linear_ffn",
    "linear_only",
    "attention_off",
    "mean_attention",
    "static_attention",
    "channel_attention",
    "diagonal_projection",
    "per_dimension",
    "diagonal_ffn",
)


def _entry(
    recipe: str,
    steps: int,
    *,
    task: dict | None = None,
    model: dict | None = None,
    low: tuple[str, ...] = (),
    high: tuple[str, ...] = (),
    **more: object,
) -> dict:
    """A probe at a size at which fifteen replicas train in seconds.

    low, high: the variants that begin with lower or higher rates than the others.
    """
    training = {"steps": steps, "batch_size": 64, "evaluate_every": steps // 5, "checkpoint_every": steps}
    return {
        "recipe": f"../probes/{recipe}.py",
        "overrides": {
            "task": {"evaluation_examples": 1024} | (task or {}),
            "model": model or {},
            "optimizer": {"warmup_steps": 20},
            "training": training | {"steps_per_call": 50, "evaluate_batch_size": 1024},
        },
        "threshold": 0.9,
        "variant_rates": dict.fromkeys(low, LOW) | dict.fromkeys(high, HIGH),
    } | more


def _attention(**knobs: object) -> dict:
    return {"model": {"attention": knobs}}


def _ffn(**knobs: object) -> dict:
    return {"model": {"ffn": knobs}}


SOURCE = "the debate that founded the lab: docs/science.md"


def _score(task: str, variant: str = "baseline") -> dict:
    return {"task": task, "variant": variant}


def _measure(measure: str, task: str, variant: str = "baseline") -> dict:
    return {"task": task, "variant": variant, "measure": measure}


def _compare(name: str, question: str, more: dict, less: dict | None, threshold: float, because: str) -> dict:
    compared = {"name": name, "question": question, "more": more, "less": less}
    return compared | {"threshold": threshold, "because": because}


# Why the thresholds are what they are.
TENTH = "a tenth of all energy is no rounding error, and dense maps spread nearly all of it"
NO_PATH = "without a path the energy is exactly 0"
HALF = "theory gives 0 or, where it can be learned, 1; half the variance lies between"
POINTER = "theory gives 0.25 more for each pointer that is followed; 0.15 is more than half of that"
FIFTH = "a fifth of the variance is ten times what the report calls equal (0.02)"
NONLINEAR = "theory gives a linear network 0; a fifth of the variance is more than luck on test examples adds"
ROUNDING = "rounding in float32 is below 1e-6, and a different order changes outputs by a tenth or more"


def _conclude(verdict: str, reason: str, **when: str) -> dict:
    return {"verdict": verdict, "reason": reason, "when": when}


CLAIMS = (
    {
        "name": "C1",
        "statement": "The first feature of Q only ever meets the first feature of K: attention captures nothing across "
        "them.",
        "source": SOURCE,
        "comparisons": (
            _compare(
                "crosses",
                "does energy cross features?",
                _measure("cross_feature_energy", "rotation"),
                _measure("cross_feature_energy", "rotation", "per_dimension"),
                0.1,
                TENTH,
            ),
            _compare(
                "learns",
                "does dense attention learn a rotation that per_dimension cannot?",
                _score("rotation"),
                _score("rotation", "per_dimension"),
                0.5,
                HALF,
            ),
        ),
        "conclusions": (
            _conclude(
                "refuted",
                "with dense projections a feature of Q meets all of them; only per_dimension keeps them apart",
                crosses="yes",
                learns="yes",
            ),
            _conclude(
                "supported only when",
                "what counts is what is learned: energy crosses features, but dense attention learns no more than one "
                "head a feature",
                crosses="yes",
            ),
            _conclude("refuted", "dense attention learns a rotation that per_dimension cannot", learns="yes"),
            _conclude("supported", "dense projections do no better than one head a feature"),
        ),
    },
    {
        "name": "C3",
        "statement": "Every feature of Q, K and V is a weighted sum of all input features.",
        "source": SOURCE,
        "comparisons": (
            _compare(
                "dense",
                "does energy cross features through dense projections alone?",
                _measure("cross_feature_energy", "rotation", "diagonal output"),
                None,
                0.1,
                TENTH,
            ),
            _compare(
                "diagonal",
                "does it through diagonal ones?",
                _measure("cross_feature_energy", "rotation", "per_dimension"),
                None,
                0.0,
                NO_PATH,
            ),
        ),
        "conclusions": (
            _conclude(
                "supported",
                "dense projections spread each feature's energy over all; diagonal ones leave exactly none",
                dense="yes",
                diagonal="no",
            ),
            _conclude("refuted", "the projections do not decide whether features mix"),
        ),
    },
    {
        "name": "C4",
        "statement": "One attention finds one relation; more attentions find more.",
        "source": SOURCE,
        "comparisons": (
            _compare(
                "two",
                "do 2 heads follow more than 1?",
                _score("pointers", "2 heads"),
                _score("pointers", "1 head"),
                0.15,
                POINTER,
            ),
            _compare(
                "four",
                "do 4 heads follow more than 2?",
                _score("pointers"),
                _score("pointers", "2 heads"),
                0.15,
                POINTER,
            ),
        ),
        "conclusions": (
            _conclude("supported", "each head that is added follows one more pointer", two="yes", four="yes"),
            _conclude(
                "supported only when", "heads are few: 2 follow more pointers than 1, 4 no more than 2", two="yes"
            ),
            _conclude(
                "supported only when", "heads are many: 4 follow more pointers than 2, 2 no more than 1", four="yes"
            ),
            _conclude("refuted", "more heads do not follow more pointers"),
        ),
    },
    {
        "name": "C7",
        "statement": "Every dot product of q and k already uses all features.",
        "source": SOURCE,
        "comparisons": (
            _compare(
                "wide",
                "does 1 head of 8 features beat 8 heads of 1?",
                _score("nearest"),
                _score("nearest", "8 heads of 1"),
                0.2,
                FIFTH,
            ),
        ),
        "conclusions": (
            _conclude(
                "supported", "one head of eight features compares whole vectors; eight heads of one cannot", wide="yes"
            ),
            _conclude("refuted", "a head of one feature compares vectors as well as a head of all of them"),
        ),
    },
    {
        "name": "C8",
        "statement": "Too many features in one dot product make attention uniform; heads restore diversity.",
        "source": SOURCE,
        "comparisons": (
            _compare(
                "heads_help",
                "do 4 heads beat 1 on four pointers?",
                _score("pointers"),
                _score("pointers", "1 head"),
                0.2,
                FIFTH,
            ),
            _compare(
                "heads_harm",
                "does 1 wide head beat 8 narrow ones on nearest?",
                _score("nearest"),
                _score("nearest", "8 heads of 1"),
                0.2,
                FIFTH,
            ),
        ),
        "conclusions": (
            _conclude(
                "supported only when",
                "several relations are asked for at once; one comparison of whole vectors wants one wide head",
                heads_help="yes",
                heads_harm="yes",
            ),
            _conclude("supported", "heads help, and narrow ones do no harm", heads_help="yes"),
            _conclude("refuted", "heads do not help"),
        ),
    },
    {
        "name": "C10",
        "statement": "The FFN is the dense connection across features; stacking attention and FFN gives cross-feature "
        "capture.",
        "source": SOURCE,
        "comparisons": (
            _compare("relu", "is the product learned with a relu FFN?", _score("product"), None, 0.5, HALF),
            _compare("without", "without an FFN?", _score("product", "ffn_off"), None, 0.5, HALF),
            _compare("linear", "with a linear FFN?", _score("product", "linear_ffn"), None, 0.5, HALF),
            _compare("odd", "with an odd (tanh) FFN?", _score("product", "tanh FFN"), None, 0.5, HALF),
            _compare(
                "biased_without",
                "with biases, without an FFN?",
                _score("product with biases", "ffn_off"),
                None,
                0.5,
                HALF,
            ),
            _compare(
                "biased_linear",
                "with biases and a linear FFN?",
                _score("product with biases", "linear_ffn"),
                None,
                0.5,
                HALF,
            ),
            _compare(
                "biased_odd", "with biases and a tanh FFN?", _score("product with biases", "tanh FFN"), None, 0.5, HALF
            ),
        ),
        "conclusions": (
            _conclude(
                "supported only when",
                "no other part breaks the symmetry f(-X) = -f(X): without biases only an FFN that is neither linear "
                "nor odd learns a product of two features; with biases attention alone, a linear and a tanh FFN learn "
                "it too",
                relu="yes",
                without="no",
                linear="no",
                odd="no",
                biased_without="yes",
                biased_linear="yes",
                biased_odd="yes",
            ),
            _conclude(
                "supported only when",
                "the FFN is neither linear nor odd: attention alone, a linear and a tanh FFN stay at 0",
                relu="yes",
                without="no",
                linear="no",
                odd="no",
            ),
            _conclude(
                "supported",
                "with an FFN the product of two features is learned, without it not",
                relu="yes",
                without="no",
            ),
            _conclude("refuted", "the product is learned without an FFN, or not at all"),
        ),
    },
    {
        "name": "C11",
        "statement": "Nothing nonlinear stands between the W's and QK, so they are just another linear layer.",
        "source": SOURCE,
        "comparisons": (
            _compare(
                "several",
                "does attention alone beat a linear network with four tokens?",
                _score("product_of_three"),
                _score("product_of_three", "linear_only"),
                0.2,
                NONLINEAR,
            ),
            _compare(
                "one",
                "does it learn with a single token?",
                _score("product_of_three, one token"),
                None,
                0.2,
                NONLINEAR,
            ),
            _compare(
                "norm",
                "does it learn with a single token and a norm?",
                _score("product_of_three, one token", "RMSNorm"),
                None,
                0.2,
                NONLINEAR,
            ),
        ),
        "conclusions": (
            _conclude(
                "supported only when",
                "a sequence has a single token and no norm: then the whole network is linear; with several tokens the "
                "softmax, and with one token the norm, make attention alone learn what no linear network can",
                several="yes",
                one="no",
                norm="yes",
            ),
            _conclude(
                "supported only when",
                "a sequence has a single token: W_q W_k^T merges exactly, but with several tokens the softmax makes "
                "attention alone learn what no linear network can",
                several="yes",
                one="no",
            ),
            _conclude("refuted", "attention alone learns what no linear network can", several="yes"),
            _conclude("supported", "no difference"),
        ),
    },
    {
        "name": "C12",
        "statement": "For an input of shape [1, 3, 2] the axis of 3 and the axis of 2 are treated alike.",
        "source": SOURCE,
        "comparisons": (
            _compare(
                "tokens",
                "do permuted tokens change more than the order?",
                _measure("token_equivariance_error", "nearest"),
                None,
                0.01,
                ROUNDING,
            ),
            _compare(
                "features",
                "do permuted features?",
                _measure("feature_equivariance_error", "nearest"),
                None,
                0.1,
                ROUNDING,
            ),
            _compare(
                "positions",
                "do permuted tokens, with learned positions?",
                _measure("token_equivariance_error", "nearest", "learned positions"),
                None,
                0.1,
                ROUNDING,
            ),
        ),
        "conclusions": (
            _conclude(
                "refuted",
                "permuted tokens give permuted outputs, permuted features give other ones; with learned positions "
                "neither axis may be permuted, but only because positions are added to tokens",
                features="yes",
                tokens="no",
                positions="yes",
            ),
            _conclude(
                "refuted",
                "permuted tokens give permuted outputs; permuted features give other ones",
                features="yes",
                tokens="no",
            ),
            _conclude("supported", "both axes are treated alike"),
        ),
    },
)


def get_config() -> ConfigDict:
    """The ablation."""
    small = {"width": 32, "depth": 1}
    narrow = {"ffn": {"expansion": 1.0}}
    return ConfigDict(
        {
            "question": "Does mixing across features matter, where, and through which part?",
            "tasks": {
                "product": _entry(
                    "product",
                    200,
                    model=small,
                    variants={"tanh FFN": _ffn(activation="tanh"), "bilinear FFN": _ffn(kind="bilinear")},
                    low=("mean_attention",),
                    high=(
                        "channel_attention",
                        "diagonal_ffn",
                        "diagonal_projection",
                        "per_dimension",
                        "static_attention",
                    ),
                ),
                "product with biases": _entry(
                    "product",
                    500,
                    model=small | {"bias": True},
                    variants={"tanh FFN": _ffn(activation="tanh")},
                    only=("ffn_off", "linear_ffn"),
                    low=("linear_ffn",),
                ),
                "product_of_three": _entry(
                    "product_of_three",
                    400,
                    model=small,
                    threshold=0.5,
                    low=("baseline", "channel_attention", "linear_ffn"),
                    high=("per_dimension",),
                ),
                "product_of_three, one token": _entry(
                    "product_of_three",
                    2000,
                    task={"tokens": 1},
                    model=small,
                    variants={"RMSNorm": {"model": {"norm": {"kind": "rmsnorm"}}}},
                    only=(),
                    threshold=0.5,
                    learning_rates=LOW,
                ),
                # Several tokens: with a single one the gradient of Q and K is exactly 0.
                "rotation": _entry(
                    "rotation",
                    250,
                    task={"features": 16, "tokens": 4},
                    model={"width": 16},
                    variants={"diagonal output": _attention(output="diagonal")},
                    learning_rates=HIGH,
                ),
                "pointers": _entry(
                    "pointers",
                    500,
                    model=narrow,
                    variants={"1 head": _attention(num_heads=1), "2 heads": _attention(num_heads=2)},
                    low=("channel_attention", "linear_ffn"),
                    high=("per_dimension",),
                ),
                "nearest": _entry(
                    "nearest",
                    400,
                    model=narrow,
                    variants={
                        "8 heads of 1": _attention(num_heads=8, head_dim=1),
                        "8 heads of 8": _attention(num_heads=8, head_dim=8),
                        "learned positions": {"model": {"position": "learned"}},
                    },
                    low=("8 heads of 1",),
                    high=("diagonal_projection", "per_dimension"),
                ),
                # One token: heads and projections change nothing there, and fixed weights are the mean.
                "planted_interactions": _entry(
                    "planted_interactions",
                    250,
                    model=small,
                    only=("linear_ffn", "linear_only", "mean_attention", "channel_attention", "diagonal_ffn"),
                    low=("mean_attention",),
                    high=("diagonal_ffn", "linear_ffn"),
                ),
                "delay": _entry("delay", 150, task={"tokens": 4}, model=small, learning_rates=HIGH),
                "recall": _entry(
                    "recall",
                    150,
                    task={"vocabulary": 16, "sequence_length": 12, "pairs": 2},
                    model={"width": 32},
                    learning_rates=LOW,
                    high=("mean_attention", "per_dimension", "static_attention"),
                ),
            },
            "variants": {name: name for name in VARIANTS},
            "learning_rates": (0.01, 0.03, 0.1),
            "seeds": (0, 1, 2, 3, 4),
            "claims": CLAIMS,
        }
    )
