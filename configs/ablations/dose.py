"""How much mixing of features is enough? Score against dose, from diagonal maps to dense ones.

Between them block-diagonal maps (blocks of b features), maps of low rank r, Monarch maps (two block-diagonal ones with
a shuffle between) and fixed ones (Hadamard). Two probes whose curves theory gives (a random rotation: b / d and r / d;
a product of the first two features, which a block of two holds), handwritten digits, and text with a small model that
trains until its validation curves are flat.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/dose.py --workdir=runs/dose
Short form, without text: --only=rotation,product,digits
Variants to try: --config.match=parameters
"""

from ml_collections import ConfigDict

BLOCKS, RANKS = (2, 4, 8), (1, 2, 4, 8)


def _doses(width: int, *parts: str) -> dict:
    """Each structure in all of its doses, in these parts of the model."""
    of_maps = lambda knobs: {"model": {part: dict(knobs) | _outputs(part, knobs) for part in parts}}  # noqa: E731
    doses = {f"blocks of {size}": of_maps({"projection": "block", "block_size": size}) for size in BLOCKS}
    doses |= {f"rank {rank}": of_maps({"projection": "low_rank", "rank": rank}) for rank in RANKS}
    doses["Monarch, blocks of 4"] = of_maps({"projection": "monarch", "block_size": 4})
    if "ffn" in parts:  # attention alone of fixed maps has nothing to learn
        doses["Hadamard"] = of_maps({"projection": "hadamard"})
        doses["Hadamard"]["model"]["ffn"]["expansion"] = 1.0  # a fixed map is square
    diagonal = {
        part: {"kind": "diagonal"} if part == "ffn" else {"projection": "diagonal", "output": "diagonal"}
        for part in parts
    }
    return {"diagonal": {"model": diagonal}} | doses


def _outputs(part: str, knobs: dict) -> dict:
    return {"output": knobs["projection"]} if part == "attention" else {}


def _entry(recipe: str, steps: int, batch_size: int, width: int, parts: tuple[str, ...], **more: dict) -> dict:
    training = {"steps": steps, "batch_size": batch_size, "evaluate_every": steps // 10, "checkpoint_every": steps}
    return {
        "recipe": f"../{recipe}.py",
        "overrides": {
            "task": more.get("task", {}),
            "model": {"width": width} | more.get("model", {}),
            # One rate suits maps of all structures, so that the grid rarely grows.
            "optimizer": {"name": "adamw", "scaling": "mup", "base_fan_in": width, "warmup_steps": 20},
            "training": training | {"steps_per_call": 50, "evaluate_batch_size": 300 if recipe == "digits" else 1024},
        },
        "variants": _doses(width, *parts),
    }


def get_config() -> ConfigDict:
    """The ablation."""
    probe = {"evaluation_examples": 1024}
    apart = {"embedding": "identity"}  # so that the structured maps alone mix
    unmoved = {"shift": 0}  # shifted images take several times as many updates until curves are flat
    text = {"depth": 2, "attention": {"num_heads": 4}, "ffn": {"kind": "mlp", "expansion": 4.0}, "position": "learned"}
    return ConfigDict(
        {
            "question": "How much mixing of features is enough?",
            "tasks": {
                "rotation": _entry(
                    "probes/rotation", 600, 64, 16, ("attention",), task=probe | {"features": 16, "rotation": "random"}
                ),
                "product": _entry(
                    "probes/product",
                    1200,
                    64,
                    8,
                    ("ffn",),
                    task=probe | apart | {"tokens": 1},
                    model={
                        "depth": 1,
                        "attention": {"kind": "off"},
                        "ffn": {"expansion": 4.0},
                        "norm": {"kind": "off"},
                    },
                ),
                "digits": _entry("digits", 2000, 32, 32, ("attention", "ffn"), task=unmoved, model={"depth": 2}),
                "speeches": _entry(
                    "speeches", 3000, 32, 32, ("attention", "ffn"), task={"sequence_length": 32}, model=text
                ),
            },
            "series": {
                "blocks": ("diagonal", *(f"blocks of {size}" for size in BLOCKS), "baseline"),
                "rank": (*(f"rank {rank}" for rank in RANKS), "baseline"),
                "Monarch": ("Monarch, blocks of 4",),
                "fixed": ("Hadamard",),
            },
            "learning_rates": (0.003, 0.01, 0.03),
            "score_tolerance": 0.005,
            "seeds": (0, 1, 2, 3, 4),
        }
    )
