"""What each part of a Transformer contributes on handwritten digits and on speeches, with small models.

Both train until validation curves are flat: digits with 27 thousand parameters, the next characters of speeches with
0.1 million.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/real_data.py --workdir=runs/real_data
Short form, without text: --only=digits
Variants to try: --config.match=parameters, which widens or narrows each variant to the baseline's parameters
"""

from ml_collections import ConfigDict

# What mixes features, what mixes tokens, and two models without attention.
ON_TEXT = (
    "per_dimension",
    "diagonal_projection",
    "ffn_off",
    "diagonal_ffn",
    "linear_ffn",
    "linear_only",
    "attention_off",
    "single_head",
    "cnn_1d",
    "lstm",
)
# Muon, the recipes' own, would leave diagonal maps to AdamW.
ONE_OPTIMIZER = {"name": "adamw"}
ON_DIGITS = (  # the last four need whole images, or are not causal
    "mean_attention",
    "static_attention",
    "norm_off",
    "skip_off",
    "linear_attention",
    "lightning_attention",
    "factorization_machine",
    "channel_attention",
    "cnn_2d",
    "mlp",
    "mixer",
)


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
    text = {"width": 64, "depth": 2}
    return ConfigDict(
        {
            "question": "What do real data lose without each part?",
            "tasks": {
                # Shifted images take several times as many updates until curves are flat.
                "digits": _entry("digits", 1500, 32, {"width": 32, "depth": 2}, {"shift": 0}, 0.9),
                "speeches": _entry(
                    "speeches", 3000, 16, text, {"sequence_length": 64}, 0.4, only=("baseline", *ON_TEXT)
                ),
            },
            "variants": {name: name for name in (*ON_TEXT, *ON_DIGITS)},
            "learning_rates": (0.003, 0.01, 0.03),
            "score_tolerance": 0.005,  # a quarter of what the report calls equal
            "seeds": (0, 1, 2, 3, 4),
            "search_seeds": 2,
        }
    )
