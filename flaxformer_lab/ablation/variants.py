"""Named variants: small tables of overrides on a config. A value may be a function of the config that it changes."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flaxformer_lab import registry
from flaxformer_lab.config import Config, as_dict, parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import flatten, nearest, override

Value = Any | Callable[[Config], Any]


@dataclass(frozen=True)
class Variant:
    """A named change to the model, and what it is meant to show."""

    purpose: str
    overrides: Mapping[str, Value]


def _added_position(config: Config) -> str:
    """Rotary positions mix pairs of features; variants in which features must not mix use a table instead."""
    position = getattr(config.model, "position", "off")  # a model without positions lacks the key, which is refused
    return "learned" if position == "rotary" else position


def _baseline(name: str) -> Callable[[Config], dict[str, Any]]:
    """Another model of the same width, depth and so on; what it alone has takes its default."""

    def model(config: Config) -> dict[str, Any]:
        if config.model.name == name:
            return dataclasses.asdict(config.model)
        kind = registry.lookup("model", name).config
        shared = {"width", "depth", "bias", "dtype", "precision", "causal"}
        knobs = shared & {knob.name for knob in dataclasses.fields(kind)}
        return {"name": name} | {knob: getattr(config.model, knob) for knob in knobs if hasattr(config.model, knob)}

    return model


VARIANTS: dict[str, Variant] = {
    "single_head": Variant(
        "one head as wide as the model: one relation per layer",
        {"model.attention.num_heads": 1, "model.attention.head_dim": None, "model.attention.num_kv_heads": None},
    ),
    "multi_head": Variant(
        "eight heads that share the width: up to eight relations per layer",
        {"model.attention.num_heads": 8, "model.attention.head_dim": None, "model.attention.num_kv_heads": None},
    ),
    "ffn_off": Variant("no feed-forward part: attention alone", {"model.ffn.kind": "off"}),
    "linear_ffn": Variant(
        "an FFN without its nonlinearity: features mix, but only linearly",
        {"model.ffn.kind": "mlp", "model.ffn.activation": "identity"},
    ),
    "linear_only": Variant(
        "the whole network is one linear map of its input: f(aX + bY) = a f(X) + b f(Y)",
        {
            "model.attention.kind": "static",
            "model.attention.activation": "identity",
            "model.attention.norm": "off",
            "model.attention.gate": False,
            "model.ffn.kind": "mlp",
            "model.ffn.activation": "identity",
            "model.norm.kind": "off",
            "model.bias": False,
            "model.position": "off",
            "model.dropout": 0.0,
            "task.pooling": "mean",
        },
    ),
    "attention_off": Variant("no token mixing at all", {"model.attention.kind": "off"}),
    "mean_attention": Variant("every token receives the mean of the tokens", {"model.attention.kind": "mean"}),
    "static_attention": Variant("learned token weights that do not see the input", {"model.attention.kind": "static"}),
    "diagonal_projection": Variant(
        "query, key and value weigh each feature alone: no mixing before the scores",
        {
            "model.attention.projection": "diagonal",
            "model.attention.head_dim": None,
            "model.attention.num_kv_heads": None,
        },
    ),
    "per_dimension": Variant(
        "a feature of Q meets only the same feature of K: one head per feature, diagonal projections and output",
        {
            "model.attention.projection": "diagonal",
            "model.attention.output": "diagonal",
            "model.attention.num_heads": lambda config: config.model.width,
            "model.attention.head_dim": 1,
            "model.attention.num_kv_heads": None,
            "model.position": _added_position,
        },
    ),
    "diagonal_ffn": Variant("an FFN of its own for each feature: no mixing in it", {"model.ffn.kind": "diagonal"}),
    "norm_off": Variant("no normalisation", {"model.norm.kind": "off"}),
    "skip_off": Variant("no residual connections", {"model.skip.attention": False, "model.skip.ffn": False}),
    "channel_attention": Variant(
        "attention between features instead of tokens (XCiT)", {"model.attention.kind": "channel"}
    ),
    "linear_attention": Variant(
        "weights that are products of positive features: no softmax, a state of constant size",
        {"model.attention.kind": "linear"},
    ),
    "lightning_attention": Variant(
        "no softmax and no sum of weights; a decay per head, and TransNormerLLM's activation and norm in their place",
        {
            "model.attention.kind": "lightning",
            "model.attention.activation": "silu",
            "model.attention.norm": "srmsnorm",
        },
    ),
    "mlp": Variant("dense layers for each token alone", {"model": _baseline("mlp")}),
    "factorization_machine": Variant(
        "products of every two features, for each token alone", {"model": _baseline("factorization_machine")}
    ),
    "cnn_1d": Variant("convolutions along the tokens", {"model": _baseline("cnn_1d")}),
    "cnn_2d": Variant("convolutions over an image's grid of patches", {"model": _baseline("cnn_2d")}),
    "resnet": Variant("residual convolutions in stages over an image's grid", {"model": _baseline("resnet")}),
    "convnext": Variant("depthwise convolutions and MLPs over an image's grid", {"model": _baseline("convnext")}),
    "lstm": Variant("a recurrence with a gated memory", {"model": _baseline("lstm")}),
    "gru": Variant("a recurrence with gates", {"model": _baseline("gru")}),
    "mixer": Variant("learned maps over tokens, then over features", {"model": _baseline("mixer")}),
}


def apply_variants(config: Config, names: Sequence[str]) -> Config:
    """Returns the config with the named variants applied to it.

    Raises:
        ConfigError: an unknown variant, two that set one key to different values, or an outcome that cannot be.
    """
    if not names:
        return config
    set_by: dict[str, tuple[str, Any]] = {}
    for name in names:
        if name not in VARIANTS:
            usual = re.sub(r"^(no|without|remove|drop)_(.+)$", r"\2_off", name)
            raise ConfigError(
                f"--ablation={name} is not a variant: {nearest(usual, VARIANTS)}choose from {', '.join(VARIANTS)}"
            )
        for key, value in VARIANTS[name].overrides.items():
            value = value(config) if callable(value) else value
            other, theirs = set_by.setdefault(key, (name, value))
            if theirs != value:
                raise ConfigError(
                    f"--ablation={name} sets {key}={value}, but {other} sets it to {theirs}; name only one of the two"
                )
    tree = as_dict(config)
    if "model" in set_by:  # first, so that single knobs change the model that will be there
        tree["model"] = set_by.pop("model")[1]
        known = flatten(as_dict(parse_config(tree)))
    else:
        known = flatten(tree)
    for key, (name, value) in set_by.items():
        if key in known:
            tree = override(tree, key, value)
        elif key.startswith("model."):
            raise ConfigError(
                f"--ablation={name} sets {key}, which model.name={tree['model']['name']} does not have; "
                "drop the variant or choose another model"
            )
    return parse_config(tree)
