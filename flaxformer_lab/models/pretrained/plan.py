"""How tensors of a family become our leaves: each leaf has a source, which rearranges tensors called by name.

A source is undone without a second table: made of the numbers of the tensors' elements instead of their values, it says
which element each place of the leaf came from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import ResNetConfig, TransformerConfig
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.parsing import parse

Settings = Mapping[str, Any]  # the content of a Hugging Face config.json
Tensors = dict[str, np.ndarray]

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


class Source(NamedTuple):
    """The source of one of our leaves: `make` of the tensors called `names`.

    added: how many of the names, at the end, `make` only adds to a leaf that the first ones make.
    """

    make: Callable[..., np.ndarray]
    names: tuple[str, ...]
    added: int = 0


@dataclass(frozen=True)
class Plan:
    """How one model is converted.

    Attributes:
        build: makes the network with this config or, where parts are changed, with another.
        table: from each of our leaf paths to its source.
        state: likewise for what is no parameter.
        ties: from a tensor that a file may leave out to the one that it equals.
        buffers: a pattern of the names that are no weights, or none that the outputs depend on.
    """

    config: TransformerConfig | ResNetConfig
    build: Callable[[Any, Rngs], nnx.Module]
    table: dict[str, Source]
    ties: dict[str, str] = field(default_factory=dict)
    buffers: str = ""
    state: dict[str, Source] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------- sources


def dense(ours: str, *theirs: str, heads: int = 1, bias: bool | None = True) -> dict[str, Source]:
    """PyTorch's Linear keeps [features out, features in]; query, key and value are fused by heads of keys.

    bias: False makes a bias of zeros; None, none.
    """
    kernels = tuple(f"{name}.weight" for name in theirs)
    biases = tuple(f"{name}.bias" for name in theirs)
    table = {f"{ours}.kernel": Source(partial(transposed, heads=heads), kernels)}
    if bias is None:
        return table
    return table | {f"{ours}.bias": Source(partial(fused, heads=heads), biases) if bias else Source(no_bias, kernels)}


def norm(ours: str, theirs: str, *, bias: bool = True) -> dict[str, Source]:
    """The scale of a norm, and its bias."""
    table = {f"{ours}.scale": Source(same, (f"{theirs}.weight",))}
    return table | {f"{ours}.bias": Source(same, (f"{theirs}.bias",))} if bias else table


def same(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


def fused(*tensors: np.ndarray, heads: int = 1) -> np.ndarray:
    """Several projections concatenated along the first axis, head by head; of fewer heads of keys, by these."""
    if len({tensor.shape[1:] for tensor in tensors}) > 1 or any(len(tensor) % heads for tensor in tensors):
        raise ValueError(f"they are not {len(tensors)} that fit {heads} heads")
    by_head = [tensor.reshape(heads, -1, *tensor.shape[1:]) for tensor in tensors]
    return np.concatenate(by_head, axis=1).reshape(-1, *tensors[0].shape[1:])


def transposed(*kernels: np.ndarray, heads: int = 1) -> np.ndarray:
    """A kernel [features in, features out]."""
    return fused(*kernels, heads=heads).T


def no_bias(*kernels: np.ndarray) -> np.ndarray:
    """A zero bias for kernels [features out, features in] that have none."""
    return np.zeros(sum(map(len, kernels)), np.float32)


def undo(source: Source, leaf: np.ndarray, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors that make this leaf; of what the source does not use, `tensors` gives the values.

    Raises:
        ValueError: a bias that is not zero where the file has none.
    """
    if source.make is no_bias:
        if np.any(leaf):
            raise ValueError("the file has no bias there, and training moved it from 0")
        return {}
    moved = source.names[: len(source.names) - source.added]
    sizes = np.cumsum([0, *(tensors[name].size for name in moved)])
    numbers = [
        np.arange(first, last, dtype=np.int64).reshape(tensors[name].shape)
        for name, first, last in zip(moved, sizes, sizes[1:], strict=False)
    ]
    still = [np.zeros(tensors[name].shape, np.int64) for name in source.names[len(moved) :]]
    constants = [np.zeros(tensors[name].shape, np.float32) for name in moved]
    offset = source.make(*constants, *(np.asarray(tensors[name], np.float32) for name in source.names[len(moved) :]))
    flat = np.concatenate([np.asarray(tensors[name], np.float32).ravel() for name in moved])
    flat[source.make(*numbers, *still).ravel()] = (leaf - offset).ravel()
    parts = np.split(flat, sizes[1:-1])
    return {name: part.reshape(tensors[name].shape) for name, part in zip(moved, parts, strict=True)}


# ------------------------------------------------------------------------------------------- settings


def model_config(*, heads: int, hidden: int, activation: str, width: int, **knobs: Any) -> TransformerConfig:
    """The config of a Transformer; other knobs as our config nests them."""
    attention = {"num_heads": heads} | knobs.pop("attention", {})
    ffn = {"activation": activation, "expansion": hidden / width} | knobs.pop("ffn", {})
    return parse(TransformerConfig, {"width": width, "attention": attention, "ffn": ffn, **knobs}, "model")


def size(settings: Settings, key: str) -> int:
    """A whole number of at least 1.

    Raises:
        ConfigError: something else, or more than an array may have.
    """
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"{key}={value!r} must be a whole number of at least 1; use the config.json that belongs to the weights"
        )
    if value >= 2**31:
        raise ConfigError(f"{key}={value} must be below 2**31; use the config.json that belongs to the weights")
    return value


def activation(settings: Settings, key: str, default: str) -> str:
    """Our name of an activation.

    Raises:
        ConfigError: one that we have not.
    """
    name = settings.get(key, default)
    if not isinstance(name, str) or name not in ACTIVATION_NAMES:
        raise ConfigError(
            f"{key}={name!r} cannot be expressed by our config; "
            f"choose a model with one of {', '.join(ACTIVATION_NAMES)}"
        )
    return ACTIVATION_NAMES[name]


def require(settings: Settings, **required: Any) -> None:
    """Raises ConfigError where a setting has another value; absent ones have this one."""
    for key, value in required.items():
        if settings.get(key, value) != value:
            raise ConfigError(
                f"{key}={settings[key]!r} of {settings['model_type']} cannot be expressed by our config; "
                f"choose a model with {key}={value!r}"
            )


def ties(settings: Settings, tied: dict[str, str], *, default: bool = True) -> dict[str, str]:
    """The tied tensors, where the settings say so."""
    return tied if settings.get("tie_word_embeddings", default) else {}


def rotation(settings: Settings, *, base: str, share: str | None = None, default_share: float = 1.0) -> dict[str, Any]:
    """The knobs of rotary positions; newer files nest what older ones have as `base` and `share`.

    Raises:
        ConfigError: scaled positions.
    """
    nested = settings.get("rope_parameters") or {}
    scaling = settings.get("rope_scaling") or nested
    if not isinstance(nested, Mapping) or not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_parameters={nested!r} must be a mapping; use the config.json of the weights")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ConfigError(
            f"rope_type={kind!r} of {settings['model_type']} cannot be expressed by our config; choose a model with "
            "rope_type='default'"
        )
    portion = nested.get("partial_rotary_factor", settings.get(share, default_share) if share else default_share)
    return {"rotary_base": nested.get("rope_theta", settings.get(base, 1e4)), "rotary_share": portion}


# -------------------------------------------------------------------------------------------- tensors


def body_prefix(prefix: str, tensors: Tensors) -> str:
    """`prefix` where the body's names have it, as in a file with a head; else an empty string."""
    return prefix if any(name.startswith(prefix) for name in tensors) else ""


def outputs(tensors: Tensors, name: str = "classifier.bias") -> int:
    """The number of classes of a classifier; 1 where it is missing, which is told later."""
    return np.size(tensors.get(name, 0))
