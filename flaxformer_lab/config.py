"""What a run is: frozen dataclasses, and the strict parser that makes them from a recipe's plain mapping.

A config has six parts: seed, task, model, optimizer, training, parallelism. Types, ranges and choices stand in the
annotations; rules that tie several keys together stand in the `rules` of the smallest part that holds them all.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from flaxformer_lab.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """A condition on one value, and how to say it to a user."""

    text: str
    holds: Callable[[Any], bool]


AtLeastOne = Annotated[int, Rule("must be at least 1", lambda value: value >= 1)]
NonNegative = Annotated[int, Rule("must not be negative", lambda value: value >= 0)]
Positive = Annotated[float, Rule("must be above 0", lambda value: value > 0)]
Rate = Annotated[float, Rule("must be at least 0 and below 1", lambda value: 0 <= value < 1)]
Decay = Annotated[float, Rule("must not be negative", lambda value: value >= 0)]
Fraction = Annotated[float, Rule("must be above 0 and below 1", lambda value: 0 < value < 1)]
Seed = Annotated[int, Rule("must be at least 0 and below 2**32", lambda value: 0 <= value < 2**32)]
Name = Annotated[str, Rule("must not be empty", lambda value: bool(value.strip()))]


# ---------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class AttentionConfig:
    """Token mixing.

    kind: softmax; channel (cross-covariance, XCiT); mean; static (learned weights that do not see the input); off.
    num_heads, head_dim: independent; head_dim None means model.width / num_heads.
    projection: dense, diagonal (one weight a feature), identity, for query, key and value alike.
    output: how the merged heads return to the model's width; `off` removes the map, as `identity` does.
    """

    kind: Literal["softmax", "channel", "mean", "static", "off"] = "softmax"
    num_heads: AtLeastOne = 4
    head_dim: AtLeastOne | None = None
    projection: Literal["dense", "diagonal", "identity"] = "dense"
    output: Literal["dense", "diagonal", "identity", "off"] = "dense"


@dataclass(frozen=True)
class FeedForwardConfig:
    """Feature mixing inside a token: mlp, gated (GLU), bilinear (a GLU without activation), diagonal, off."""

    kind: Literal["mlp", "gated", "bilinear", "diagonal", "off"] = "mlp"
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"] = "gelu"
    expansion: Positive = 4.0


@dataclass(frozen=True)
class NormConfig:
    """Normalisation over a token's features, before (pre) or after (post) each part's skip connection."""

    kind: Literal["layernorm", "rmsnorm", "off"] = "layernorm"
    placement: Literal["pre", "post"] = "pre"
    epsilon: Positive = 1e-6


@dataclass(frozen=True)
class SkipConfig:
    """Residual connections around attention and around the FFN."""

    attention: bool = True
    ffn: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer's knobs, each one flag."""

    width: AtLeastOne = 64
    depth: NonNegative = 4
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    ffn: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    skip: SkipConfig = field(default_factory=SkipConfig)
    position: Literal["learned", "sinusoidal", "rotary", "off"] = "learned"
    bias: bool = True
    causal: bool = False
    dropout: Rate = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.attention.head_dim or self.width // self.attention.num_heads

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        attention = self.attention
        if attention.head_dim is None and self.width % attention.num_heads:
            divisors = [n for n in range(1, min(self.width, 1024) + 1) if self.width % n == 0]
            raise ConfigError(
                f"model.attention.num_heads={attention.num_heads} does not divide model.width={self.width}; "
                f"set model.attention.head_dim or choose one of {', '.join(map(str, divisors))}"
            )
        if attention.kind == "off" and self.ffn.kind == "off" and self.depth > 0:
            raise ConfigError(
                "model.attention.kind=off and model.ffn.kind=off leave every block empty; keep one of them, "
                "or say model.depth=0 for embedding and head alone"
            )
        if self.position == "sinusoidal" and self.width % 2:
            raise ConfigError(
                f"model.position=sinusoidal pairs a sine with a cosine, so model.width={self.width} must be even; "
                "choose an even width, or position learned, rotary or off"
            )
        if attention.kind == "off":
            return
        merged = attention.num_heads * self.head_dim
        for key, value in (("projection", attention.projection), ("output", attention.output)):
            if value != "dense" and merged != self.width:
                raise ConfigError(
                    f"model.attention.{key}={value} maps each feature to itself, so num_heads x head_dim must equal "
                    f"model.width={self.width}, not {attention.num_heads} x {self.head_dim} = {merged}; "
                    "set model.attention.head_dim to none or change num_heads"
                )
        if attention.kind == "channel" and self.causal:
            raise ConfigError(
                "model.attention.kind=channel sums over all tokens, so it cannot be causal; "
                "set model.causal=false (and a task that allows it) or choose softmax, mean or static"
            )
        if attention.kind in ("softmax", "channel") and self.position == "rotary" and self.head_dim % 2:
            raise ConfigError(
                f"model.position=rotary turns pairs of features, so head_dim={self.head_dim} must be even; "
                "choose another num_heads or head_dim, or position learned, sinusoidal or off"
            )


# ----------------------------------------------------------------------------------------------------- task


@dataclass(frozen=True)
class ImageClassificationConfig:
    """Patches of an image are the tokens; the label is predicted from their mean or from a class token."""

    name: Literal["image_classification"] = "image_classification"
    dataset: Name = "lab_digits"
    patch_size: AtLeastOne = 2
    pooling: Literal["mean", "class_token"] = "mean"
    shift: NonNegative = 0  # training images are moved by up to this many pixels each way


@dataclass(frozen=True)
class LanguageModellingConfig:
    """Characters or bytes are the tokens; the next one, or the masked ones (BERT), are predicted."""

    name: Literal["language_modelling"] = "language_modelling"
    dataset: Name = "lab_speeches"
    tokenizer: Literal["characters", "bytes"] = "characters"
    objective: Literal["next_token", "masked"] = "next_token"
    sequence_length: AtLeastOne = 128
    mask_rate: Fraction = 0.15


TaskConfig = ImageClassificationConfig | LanguageModellingConfig


# ------------------------------------------------------------------------- optimizer, training, parallelism


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule. weight_decay acts on matrices only, never on vectors (biases, norm scales)."""

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: NonNegative = 0
    weight_decay: Decay = 0.0
    clip_norm: Positive | None = None
    beta1: Rate = 0.9
    beta2: Rate = 0.999


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how much at once, and what is kept.

    accumulate: micro-batches whose gradients are added before one update.
    steps_per_call: updates inside one compiled call. input: the data lives on the device, or streams from the host.
    """

    steps: AtLeastOne = 1000
    batch_size: AtLeastOne = 64
    accumulate: AtLeastOne = 1
    evaluate_every: AtLeastOne = 100
    evaluate_batch_size: AtLeastOne = 256
    checkpoint_every: AtLeastOne = 1000
    keep_last: AtLeastOne = 2
    keep_best: NonNegative = 1
    steps_per_call: AtLeastOne = 10
    input: Literal["auto", "device", "stream"] = "auto"


@dataclass(frozen=True)
class ParallelismConfig:
    """auto: pmap when there are several devices, else one device."""

    strategy: Literal["auto", "single", "pmap"] = "auto"


@dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: Seed = 0
    task: TaskConfig = field(default_factory=ImageClassificationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)

    def rules(self) -> None:
        """Raises ConfigError when parts contradict one another."""
        task, training, optimizer = self.task, self.training, self.optimizer
        if isinstance(task, LanguageModellingConfig) and (task.objective == "next_token") != self.model.causal:
            wrong, right = ("false", "true") if task.objective == "next_token" else ("true", "false")
            reason = {
                "next_token": "would let a token see the one that it must predict",
                "masked": "would hide what follows a masked token",
            }[task.objective]
            raise ConfigError(
                f"task.objective={task.objective} with model.causal={wrong} {reason}; set model.causal={right}"
            )
        if isinstance(task, ImageClassificationConfig) and task.pooling == "class_token":
            if self.model.causal or self.model.attention.kind == "off":
                blind = "causal=true" if self.model.causal else "attention.kind=off"
                raise ConfigError(
                    f"task.pooling=class_token with model.{blind} hides the image from the class token, which comes "
                    "first; set task.pooling=mean"
                )
        if training.batch_size % training.accumulate:
            raise ConfigError(
                f"training.accumulate={training.accumulate} does not divide "
                f"training.batch_size={training.batch_size}; choose one of its divisors"
            )
        if optimizer.warmup_steps > training.steps:
            raise ConfigError(
                f"optimizer.warmup_steps={optimizer.warmup_steps} is more than training.steps={training.steps}; "
                "the learning rate would never reach its peak; choose fewer of the one or more of the other"
            )


# ---------------------------------------------------------------------------------------------------- parser


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Returns the config that a nested mapping of plain values describes; what it leaves out takes its default.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or keys that contradict one another.
    """
    return _parse(Config, tree, "")


def as_dict(config: Any) -> dict[str, Any]:
    """Returns the full resolved config as nested plain values, the form that `parse_config` reads back."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{"model.width": 64, ...}` of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def override(tree: Mapping[str, Any], key: str, value: Any, path: str = "") -> dict[str, Any]:
    """Returns a copy of `tree` in which the dotted `key` has `value`; missing levels are made. `path` is for errors."""
    head, _, rest = key.partition(".")
    if not rest:
        return {**tree, head: value}
    inner, path = tree.get(head), f"{path}{head}"
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(
            f"{path}.{rest}={value}: {path} holds a plain value, {inner!r}, so nothing can be set inside it; "
            f"set {path} itself"
        )
    return {**tree, head: override(inner or {}, rest, value, f"{path}.")}


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns "did you mean a, b? " for the words that resemble `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}? " if close else ""


def _parse(kind: Any, value: Any, path: str) -> Any:
    """Returns `value` as the annotated type `kind`; `path` names it in errors."""
    rules: tuple[Rule, ...] = ()
    if typing.get_origin(kind) is Annotated:
        kind, *rules = typing.get_args(kind)
    if kind == TaskConfig:
        kind = _task_kind(value, path)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, path)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        inner = [option for option in typing.get_args(kind) if option is not types.NoneType]
        is_none = value is None or (isinstance(value, str) and value.lower() == "none")
        return None if is_none else _parse(inner[0], value, path)
    if typing.get_origin(kind) is Literal:
        return _parse_choice(typing.get_args(kind), value, path)
    parsed = _parse_scalar(kind, value, path)
    for rule in rules:
        if not rule.holds(parsed):
            raise ConfigError(f"{path}={value} {rule.text}")
    return parsed


def _parse_dataclass(kind: type, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'config'}={value!r} must be a group of keys: {', '.join(_keys(kind))}")
    hints = typing.get_type_hints(kind, include_extras=True)
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in hints:
            raise ConfigError(
                f"unknown key {prefix}{key} (value {value[key]!r}): {nearest(str(key), hints)}"
                f"{path or 'config'} has {', '.join(hints)}"
            )
    parsed = kind(**{key: _parse(hints[key], inner, prefix + key) for key, inner in value.items()})
    if hasattr(parsed, "rules"):
        parsed.rules()
    return parsed


def _keys(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _task_kind(value: Any, path: str) -> type:
    """The member of TaskConfig that `value["name"]` names."""
    kinds = {kind().name: kind for kind in typing.get_args(TaskConfig)}
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}={value!r} must be a group of keys with a name, one of {', '.join(kinds)}")
    name = value.get("name", ImageClassificationConfig.name)
    return kinds[_parse_choice(tuple(kinds), name, f"{path}.name")]


def _parse_choice(choices: tuple[str, ...], value: Any, path: str) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise ConfigError(f"{path}={value} is not a choice: {nearest(str(value), choices)}choose from {', '.join(choices)}")


def _parse_scalar(kind: type, value: Any, path: str) -> Any:
    """A bool, int, float or str, from itself or from the text of a command line."""
    words = {"true": True, "false": False}
    parsed: Any = None
    if kind is str and isinstance(value, str):
        parsed = value
    elif kind is bool:
        parsed = value if isinstance(value, bool) else words.get(str(value).lower())
    elif kind in (int, float) and not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            parsed = kind(value) if isinstance(value, str) or kind is float else value
        except (ValueError, OverflowError):
            parsed = None
        if isinstance(parsed, float) and (kind is int or not math.isfinite(parsed)):
            parsed = None
    if parsed is None:
        wanted = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}[kind]
        raise ConfigError(f"{path}={value!r} must be {wanted}")
    return parsed
