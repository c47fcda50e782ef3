"""Which mixes what: every token mixer with every feature mixer, on handwritten digits and on text.

The corners are known models: MetaFormer's identity, pooling and random mixers (Yu et al. 2022, 2024), FNet (Lee-Thorp
et al. 2022), Synthesizer (Tay et al. 2021), MLP-Mixer and gMLP (learned static weights), the Transformer. A token mixer
mixes tokens alone: its maps before and after are diagonal, and features meet in its scores only. A feature mixer mixes
features alone. What both leave to the embedding, the norms and the head is the same in every cell. Text is trained with
a small model until its validation curves are flat.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/mixers.py --workdir=runs/mixers
Short form, without text: --only=digits
Time: 36 minutes for digits beside other work on 2 cores of an AMD EPYC. Text is not trained yet.
Result: docs/results/mixers.md, of the values in docs/results/mixers.csv.gz.
Variants to try: --config.match=parameters
"""

from ml_collections import ConfigDict

TOKENS = {
    "identity": {"attention": {"kind": "off"}},
    "mean": {"attention": {"kind": "mean"}},
    "random": {"attention": {"kind": "random"}},
    "Fourier": {"attention": {"kind": "fourier"}},
    "static": {"attention": {"kind": "static"}},
    "linear": {"attention": {"kind": "linear"}},
    "softmax": {},
}
FEATURES = {
    "identity": {"ffn": {"kind": "off"}},
    "diagonal": {"ffn": {"kind": "diagonal"}},
    "block": {"ffn": {"projection": "block", "block_size": 4}},
    "low rank": {"ffn": {"projection": "low_rank", "rank": 4}},
    "Fourier": {"ffn": {"projection": "fourier", "expansion": 1.0}},  # a fixed map is square
    "dense": {},
}
CAUSAL = tuple(name for name in TOKENS if name != "Fourier")  # a transform sees all tokens at once


def _pair(tokens: str, features: str) -> dict:
    nothing = tokens == features == "identity"
    return {"model": {"depth": 0} if nothing else TOKENS[tokens] | FEATURES[features]}


def _variants(tokens: tuple[str, ...]) -> dict:
    pairs = ((one, other) for one in tokens for other in FEATURES if (one, other) != ("softmax", "dense"))
    return {f"{one} + {other}": _pair(one, other) for one, other in pairs}


def _entry(recipe: str, width: int, steps: int, task: dict, model: dict, tokens: tuple[str, ...]) -> dict:
    apart = {"num_heads": 4, "projection": "diagonal", "output": "diagonal"}
    plain = {"kind": "mlp", "activation": "gelu", "expansion": 4.0}
    training = {"steps": steps, "batch_size": 32, "evaluate_every": steps // 10, "checkpoint_every": steps}
    return {
        "recipe": f"../{recipe}.py",
        "overrides": {
            "task": task,
            "model": {"width": width, "depth": 2, "attention": apart, "ffn": plain} | model,
            # One rate suits maps of all structures, so that the grid rarely grows.
            "optimizer": {"name": "adamw", "scaling": "mup", "base_fan_in": width, "warmup_steps": 20},
            "training": training | {"steps_per_call": 50, "evaluate_batch_size": 300 if recipe == "digits" else 1024},
        },
        "variants": _variants(tokens),
        "only": (),
    }


def get_config() -> ConfigDict:
    """The ablation."""
    text = {"position": "learned", "bias": True}
    return ConfigDict(
        {
            "question": "Which matters more: how tokens are mixed, or how features are?",
            "tasks": {
                # Shifted images take several times as many updates until curves are flat.
                "digits": _entry("digits", 16, 1500, {"shift": 0}, {}, tuple(TOKENS)),
                "speeches": _entry("speeches", 32, 2000, {"sequence_length": 32}, text, CAUSAL),
            },
            "factors": (
                {"name": "token mixer", "levels": tuple(TOKENS)},
                {"name": "feature mixer", "levels": tuple(FEATURES)},
            ),
            "learning_rates": (0.003, 0.01, 0.03),
            "score_tolerance": 0.005,
            "seeds": (0, 1, 2, 3, 4),
        }
    )
