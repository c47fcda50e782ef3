"""What each part of a Transformer contributes on handwritten digits and on speeches, with small models.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/real_data.py --workdir=runs/real_data
Variants to try: --config.match=parameters, which widens or narrows each variant to the baseline's parameters
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: about 45 minutes, and as long again with match=parameters (with other work on the machine).
Result: docs/results/real_data.md and docs/results/real_data_parameters.md.
"""

from ml_collections import ConfigDict

ON_BOTH = (
    "single_head",
    "ffn_off",
    "linear_ffn",
    "linear_only",
    "attention_off",
    "mean_attention",
    "static_attention",
    "diagonal_projection",
    "per_dimension",
    "diagonal_ffn",
    "norm_off",
    "skip_off",
    "linear_attention",
    "lightning_attention",
    "factorization_machine",
    "cnn_1d",
    "lstm",
)
# Muon, the recipes' own, would leave diagonal maps to AdamW.
ONE_OPTIMIZER = {"name": "adamw"}
DIGITS_ONLY = ("channel_attention", "cnn_2d", "mlp", "mixer")  # need whole images, or are not causal


def get_config() -> ConfigDict:
    """The ablation."""
    return ConfigDict(
        {
            "question": "What do real data lose without each part?",
            "tasks": {
                "digits": {
                    "recipe": "../digits.py",
                    "overrides": {
                        "model": {"width": 32, "depth": 2},
                        "optimizer": ONE_OPTIMIZER,
                        "training": {
                            "steps": 300,
                            "evaluate_every": 60,
                            "checkpoint_every": 300,
                            "evaluate_batch_size": 300,
                        },
                    },
                    "threshold": 0.9,
                },
                "speeches": {
                    "recipe": "../speeches.py",
                    "overrides": {
                        "task": {"sequence_length": 64},
                        "model": {"width": 48, "depth": 2},
                        "optimizer": ONE_OPTIMIZER,
                        "training": {
                            "steps": 200,
                            "evaluate_every": 100,
                            "checkpoint_every": 200,
                            "steps_per_call": 50,
                            "evaluate_batch_size": 256,
                        },
                    },
                    "threshold": 0.4,
                    "only": ("baseline", *ON_BOTH),
                },
            },
            "variants": {name: name for name in (*ON_BOTH, *DIGITS_ONLY)},
            "learning_rates": (0.003, 0.01, 0.03),
            "seeds": (0, 1, 2, 3, 4),
        }
    )
