"""What each kind of attention learns: associative recall (MQAR), speeches and handwritten digits.

benchmarks/attention_length.py measures what each costs against length. Text is trained with 0.1 million parameters
until validation curves are flat.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/attention_kinds.py --workdir=runs/attention_kinds
Short form, without text: --only=mqar,digits
Variants to try: --config.match=parameters
"""

from ml_collections import ConfigDict

WINDOW = {"model": {"attention": {"window": 8}}}
CAUSAL = {
    "linear": "linear_attention",
    "lightning": "lightning_attention",
    "mean": "mean_attention",
    "static": "static_attention",
    "softmax, window of 8": WINDOW,
    "off": "attention_off",
}
BOTH_WAYS = {"channel": "channel_attention"}  # a causal channel attention does not exist


# Muon, the recipes' own, would leave the weights of static attention to AdamW.
ONE_OPTIMIZER = {"name": "adamw"}


def _entry(recipe: str, steps: int, batch_size: int, model: dict, task: dict, threshold: float, **more: object) -> dict:
    training = {"steps": steps, "batch_size": batch_size, "evaluate_every": steps // 10, "checkpoint_every": steps}
    return {
        "recipe": f"../{recipe}.py",
        "overrides": {
            "task": task,
            "model": model,
            "optimizer": ONE_OPTIMIZER,
            "training": training | {"steps_per_call": 50, "evaluate_batch_size": 300},
        },
        "threshold": threshold,
    } | more


def get_config() -> ConfigDict:
    """The ablation."""
    recall = {"vocabulary": 32, "sequence_length": 32, "evaluation_examples": 600}
    text, causal = {"width": 64, "depth": 2}, ("baseline", *CAUSAL)
    return ConfigDict(
        {
            "question": "What does each kind of attention learn?",
            "tasks": {
                "mqar": _entry("probes/mqar", 800, 64, {"width": 32}, recall, 0.9, only=causal),
                "speeches": _entry("speeches", 3000, 16, text, {"sequence_length": 64}, 0.4, only=causal),
                # Shifted images take several times as many updates until curves are flat.
                "digits": _entry("digits", 1500, 32, {"width": 32, "depth": 2}, {"shift": 0}, 0.9),
            },
            "variants": CAUSAL | BOTH_WAYS,
            "learning_rates": (0.003, 0.01, 0.03),
            "score_tolerance": 0.005,  # a quarter of what the report calls equal
            "seeds": (0, 1, 2, 3, 4),
            "search_seeds": 2,
        }
    )
