"""Does mixing across features matter, where, and through which part? Claims C1, C3, C4, C7, C8, C10, C11 and C12.

Eight probes whose outcome theory predicts, with every variant that changes something there.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/cross_dimension.py --workdir=runs/cross_dimension
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 14:51 minutes.
Result: docs/results/cross_dimension.md.
"""

from ml_collections import ConfigDict

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


def _entry(recipe: str, steps: int, *, task: dict | None = None, model: dict | None = None, **more: object) -> dict:
    """A probe at a size at which fifteen replicas train in seconds."""
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
    } | more


def _attention(**knobs: object) -> dict:
    return {"model": {"attention": knobs}}


def _ffn(**knobs: object) -> dict:
    return {"model": {"ffn": knobs}}


def get_config() -> ConfigDict:
    """The ablation."""
    small = {"width": 32, "depth": 1}
    narrow = {"ffn": {"expansion": 1.0}}
    return ConfigDict(
        {
            "tasks": {
                "product": _entry(
                    "product",
                    200,
                    model=small,
                    variants={"tanh FFN": _ffn(activation="tanh"), "bilinear FFN": _ffn(kind="bilinear")},
                ),
                "product_of_three": _entry(
                    "product_of_three", 400, model=small, variants={"one token": {"task": {"tokens": 1}}}, threshold=0.5
                ),
                "rotation": _entry(
                    "rotation",
                    250,
                    task={"features": 16},
                    model={"width": 16},
                    variants={"diagonal output": _attention(output="diagonal")},
                ),
                "pointers": _entry(
                    "pointers",
                    500,
                    model=narrow,
                    variants={"1 head": _attention(num_heads=1), "2 heads": _attention(num_heads=2)},
                ),
                "nearest": _entry(
                    "nearest",
                    400,
                    model=narrow,
                    variants={
                        "8 heads of 1": _attention(num_heads=8, head_dim=1),
                        "8 heads of 8": _attention(num_heads=8, head_dim=8),
                    },
                ),
                "planted_interactions": _entry("planted_interactions", 250, model=small),
                "delay": _entry("delay", 150, task={"tokens": 4}, model=small),
                "recall": _entry(
                    "recall", 150, task={"vocabulary": 16, "sequence_length": 12, "pairs": 2}, model={"width": 32}
                ),
            },
            "variants": {name: name for name in VARIANTS},
            "learning_rates": (0.001, 0.003, 0.01),
            "seeds": (0, 1, 2, 3, 4),
            "claims": ("C1", "C3", "C4", "C7", "C8", "C10", "C11", "C12"),
        }
    )
