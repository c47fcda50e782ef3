"""Converts Hugging Face's GPT-2, BERT and ViT to our networks: the same weights give the same logits.

    settings = json.loads(Path("gpt2/config.json").read_text())
    converted = from_huggingface("gpt2/model.safetensors", settings)
    logits, _ = converted.network.apply(converted.params, {}, symbols)

GPT-2 and BERT take symbols [batch, tokens]; BERT takes its attention_mask as `valid`, and every token is in segment 0.
ViT takes images [batch, rows, columns, channels]. Dropout is left out: it does not change the logits.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.models.network import Network, PureNetwork, Tree, functionalize
from flaxformer_lab.models.tensors import load_tensors
from flaxformer_lab.modules.embedding import PatchEmbedding, TokenEmbedding
from flaxformer_lab.modules.norm import LayerNorm
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.parsing import nearest, parse

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


class Converted(NamedTuple):
    """The config, the network, and its parameters (float32)."""

    config: TransformerConfig
    network: PureNetwork
    params: Tree

    def __repr__(self) -> str:
        return f"Converted({self.config.name} of width {self.config.width}, {self.network})"


def from_huggingface(
    weights: str | os.PathLike | Mapping[str, np.ndarray], settings: Settings, *, drop: tuple[str, ...] = ()
) -> Converted:
    """Returns the network whose logits are those of the transformers model that wrote these files.

    The model is one of `ARCHITECTURES`; settings["architectures"] says which.

    Args:
        weights: a .safetensors file, a folder of the shards of one, or its tensors by their names there.
        settings: the parsed config.json beside it.
        drop: prefixes of the names of tensors to leave out, such as "bert.pooler.".

    Raises:
        ConfigError: another kind of file, model or head, a setting that our config cannot express, a tensor that is
            missing, is not used by the network, or has another shape than in the settings.
    """
    tensors = _load(weights)
    kind = settings.get("model_type")
    if kind not in PLANS:
        raise ConfigError(
            f"model_type={kind!r} cannot be converted: {nearest(str(kind), PLANS)}choose {', '.join(PLANS)}"
        )
    architecture = _architecture(settings, tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(drop)}
    plan = PLANS[kind](settings, tensors, architecture)
    tensors = _with_ties(tensors, plan.ties)
    _check_names(tensors, plan, architecture)
    network = functionalize(plan.build)
    shapes, _ = network.shapes
    leaves = [_make_leaf(path, like.shape, plan.table[path], tensors) for path, like in leaf_paths(shapes).items()]
    return Converted(plan.config, network, jax.tree.unflatten(jax.tree.structure(shapes), leaves))


class MaskedHead(nnx.Module):
    """W2 norm(activation(W1 x + b1)) + b2: BERT's head for masked tokens (Devlin et al. 2019)."""

    def __init__(self, config: TransformerConfig, outputs: int, *, rngs: Rngs):
        self._activation = ACTIVATIONS[config.ffn.activation]
        self.transform = Dense(config.width, config.width, axes=("width", None), bias=True, rngs=rngs)
        self.norm = LayerNorm(config)
        self.output = Dense(config.width, outputs, axes=("width", None), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch outputs"]:
        return self.output(self.norm(self._activation(self.transform(x))))


class PooledHead(nnx.Module):
    """W2 tanh(W1 x + b1) + b2 of the first token: BERT's head for whole sequences (Devlin et al. 2019)."""

    def __init__(self, config: TransformerConfig, outputs: int, *, rngs: Rngs):
        self.pooler = Dense(config.width, config.width, axes=("width", None), bias=True, rngs=rngs)
        self.output = Dense(config.width, outputs, axes=("width", None), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch outputs"]:
        return self.output(jnp.tanh(self.pooler(x)))


# ------------------------------------------------------------------------------- which tensor goes where

# The transformers classes whose heads we have, by model type.
ARCHITECTURES = {
    "gpt2": ("GPT2LMHeadModel",),
    "bert": ("BertForMaskedLM", "BertForSequenceClassification", "BertForTokenClassification"),
    "vit": ("ViTForImageClassification",),
}


def _architecture(settings: Settings, tensors: Tensors) -> str:
    """The class that wrote the files, as the settings name it; by the tensors where they do not and only one fits."""
    kind, given = settings["model_type"], settings.get("architectures")
    supported = ARCHITECTURES[kind]
    if given is None and kind == "bert":
        if any(name.startswith("cls.predictions.") for name in tensors):
            given = ["BertForMaskedLM"]
        elif not any(name.removeprefix("bert.").startswith("pooler.") for name in tensors):
            given = ["BertForTokenClassification"]
    elif given is None:
        given = list(supported)
    if not isinstance(given, list) or len(given) != 1 or given[0] not in supported:
        raise ConfigError(
            f"architectures={given!r} of {kind} cannot be converted; choose a model with one of "
            f"{', '.join(supported)}, or name the one whose head the tensors have"
        )
    return given[0]


class Source(NamedTuple):
    """The source of one of our leaves: `make` of the tensors called `names`."""

    make: Callable[..., np.ndarray]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """How one model type is converted.

    Attributes:
        table: from each of our leaf paths to its source.
        ties: from a tensor that a file may leave out to the one that it equals.
        buffers: a pattern of the names of constants, which are not weights.
    """

    config: TransformerConfig
    build: Callable[[Rngs], nnx.Module]
    table: dict[str, Source]
    ties: dict[str, str]
    buffers: str = ""


def _gpt2(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """GPT-2 (Radford et al. 2019): pre-norm, causal; the head is the transposed embedding, without a bias."""
    del architecture
    _require(settings, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, vocabulary, tokens = (_size(settings, key) for key in ("n_embd", "vocab_size", "n_positions"))
    config = _model_config(
        width=width,
        depth=_size(settings, "n_layer"),
        heads=_size(settings, "n_head"),
        hidden=4 * width if settings.get("n_inner") is None else _size(settings, "n_inner"),
        activation=_activation(settings, "activation_function", "gelu_new"),
        norm={"placement": "pre", "epsilon": settings.get("layer_norm_epsilon", 1e-5)},
        causal=True,
    )

    def build(rngs: Rngs) -> nnx.Module:
        embedding = TokenEmbedding(vocabulary, width, dtype=config.dtype, rngs=rngs)
        return Network(config, embedding=embedding, grid=(tokens,), outputs=vocabulary, rngs=rngs)

    body = _body("transformer.", tensors)
    table = {
        "embedding.table": Source(_same, (f"{body}wte.weight",)),
        "body.position": Source(_same, (f"{body}wpe.weight",)),
        **_norm("body.norm", f"{body}ln_f"),
        "head.kernel": Source(_transposed, ("lm_head.weight",)),
        "head.bias": Source(_no_bias, ("lm_head.weight",)),
    }
    for n in range(config.depth):
        ours, theirs = f"body.blocks.{n}", f"{body}h.{n}"
        table |= _norm(f"{ours}.attention_norm", f"{theirs}.ln_1")
        table |= _conv1d(f"{ours}.attention.projection", f"{theirs}.attn.c_attn", heads=config.attention.num_heads)
        table |= _conv1d(f"{ours}.attention.output", f"{theirs}.attn.c_proj")
        table |= _norm(f"{ours}.ffn_norm", f"{theirs}.ln_2")
        table |= _conv1d(f"{ours}.ffn.up", f"{theirs}.mlp.c_fc")
        table |= _conv1d(f"{ours}.ffn.down", f"{theirs}.mlp.c_proj")
    ties = _ties(settings, {"lm_head.weight": f"{body}wte.weight"})
    return Plan(config, build, table, ties, r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")


def _bert(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """BERT (Devlin et al. 2019): post-norm, bidirectional, with one of three heads."""
    _require(settings, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    width, vocabulary, tokens = (
        _size(settings, key) for key in ("hidden_size", "vocab_size", "max_position_embeddings")
    )
    config = _encoder_config(settings, placement="post")
    masked, pooled = architecture == "BertForMaskedLM", architecture == "BertForSequenceClassification"
    outputs = vocabulary if masked else _outputs(tensors)

    def build(rngs: Rngs) -> nnx.Module:
        embedding = TokenEmbedding(vocabulary, width, dtype=config.dtype, rngs=rngs)
        make_head = MaskedHead if masked else PooledHead if pooled else None
        options = {
            "pooling": "class_token" if pooled else "off",
            "head": make_head and make_head(config, outputs, rngs=rngs),
        }
        return Network(config, embedding=embedding, grid=(tokens,), outputs=outputs, **options, rngs=rngs)

    body = _body("bert.", tensors)
    segments = f"{body}embeddings.token_type_embeddings.weight"
    table = {
        "embedding.table": Source(_same, (f"{body}embeddings.word_embeddings.weight",)),
        "body.position": Source(_plus_first, (f"{body}embeddings.position_embeddings.weight", segments)),
        **_norm("body.norm", f"{body}embeddings.LayerNorm"),
    }
    for n in range(config.depth):
        ours, theirs = f"body.blocks.{n}", f"{body}encoder.layer.{n}"
        parts = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
        table |= _dense(f"{ours}.attention.projection", *parts, heads=config.attention.num_heads)
        table |= _dense(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
        table |= _norm(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        table |= _dense(f"{ours}.ffn.up", f"{theirs}.intermediate.dense")
        table |= _dense(f"{ours}.ffn.down", f"{theirs}.output.dense")
        table |= _norm(f"{ours}.ffn_norm", f"{theirs}.output.LayerNorm")
    ties = {}
    if masked:
        table |= _dense("head.transform", "cls.predictions.transform.dense")
        table |= _norm("head.norm", "cls.predictions.transform.LayerNorm")
        table |= _dense("head.output", "cls.predictions.decoder")
        ties |= _ties(settings, {"cls.predictions.decoder.weight": f"{body}embeddings.word_embeddings.weight"})
        ties |= _ties(settings, {"cls.predictions.decoder.bias": "cls.predictions.bias"})
    elif pooled:
        table |= _dense("head.pooler", f"{body}pooler.dense")
        table |= _dense("head.output", "classifier")
    else:
        table |= _dense("head", "classifier")
    return Plan(config, build, table, ties, r"(bert\.)?embeddings\.position_ids")


def _vit(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """ViT (Dosovitskiy et al. 2021): pre-norm, with a class token."""
    del architecture
    width, image, patch, channels = (
        _size(settings, key) for key in ("hidden_size", "image_size", "patch_size", "num_channels")
    )
    if image % patch:
        raise ConfigError(
            f"patch_size={patch} does not divide image_size={image}, so pixels would be cut off; choose another model"
        )
    config = _encoder_config(settings, placement="pre")
    tokens, outputs = 1 + (image // patch) ** 2, _outputs(tensors)

    def build(rngs: Rngs) -> nnx.Module:
        options = {"bias": True, "class_token": True, "dtype": config.dtype, "rngs": rngs}
        embedding = PatchEmbedding(patch, channels, width, **options)
        return Network(config, embedding=embedding, grid=(tokens,), outputs=outputs, pooling="class_token", rngs=rngs)

    body = _body("vit.", tensors)
    convolution = f"{body}embeddings.patch_embeddings.projection"
    flattened = partial(_flattened, window=(channels, patch, patch))
    table = {
        "embedding.projection.kernel": Source(flattened, (f"{convolution}.weight",)),
        "embedding.projection.bias": Source(_same, (f"{convolution}.bias",)),
        "embedding.class_token": Source(partial(np.squeeze, axis=(0, 1)), (f"{body}embeddings.cls_token",)),
        "body.position": Source(partial(np.squeeze, axis=0), (f"{body}embeddings.position_embeddings",)),
        **_norm("body.norm", f"{body}layernorm"),
        **_dense("head", "classifier"),
    }
    for n in range(config.depth):
        ours, theirs = f"body.blocks.{n}", f"{body}encoder.layer.{n}"
        parts = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        table |= _norm(f"{ours}.attention_norm", f"{theirs}.layernorm_before")
        options = {"heads": config.attention.num_heads, "bias": settings.get("qkv_bias", True)}
        table |= _dense(f"{ours}.attention.projection", *parts, **options)
        table |= _dense(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
        table |= _norm(f"{ours}.ffn_norm", f"{theirs}.layernorm_after")
        table |= _dense(f"{ours}.ffn.up", f"{theirs}.intermediate.dense")
        table |= _dense(f"{ours}.ffn.down", f"{theirs}.output.dense")
    return Plan(config, build, table, {})


PLANS: dict[str, Callable[[Settings, Tensors, str], Plan]] = {"gpt2": _gpt2, "bert": _bert, "vit": _vit}


def _dense(ours: str, *theirs: str, heads: int = 1, bias: bool = True) -> dict[str, Source]:
    """PyTorch's Linear keeps [features out, features in]; query, key and value are fused head by head."""
    kernels = tuple(f"{name}.weight" for name in theirs)
    biases = tuple(f"{name}.bias" for name in theirs)
    return {
        f"{ours}.kernel": Source(partial(_transposed, heads=heads), kernels),
        f"{ours}.bias": Source(partial(_fused, heads=heads), biases) if bias else Source(_no_bias, kernels),
    }


def _conv1d(ours: str, theirs: str, heads: int | None = None) -> dict[str, Source]:
    """GPT-2's Conv1D keeps [features in, features out]; with `heads`, all queries, then all keys, then all values."""
    fused = _same if heads is None else partial(_rearranged, heads=heads)
    return {f"{ours}.kernel": Source(fused, (f"{theirs}.weight",)), f"{ours}.bias": Source(fused, (f"{theirs}.bias",))}


def _norm(ours: str, theirs: str) -> dict[str, Source]:
    return {f"{ours}.scale": Source(_same, (f"{theirs}.weight",)), f"{ours}.bias": Source(_same, (f"{theirs}.bias",))}


def _same(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _fused(*tensors: np.ndarray, heads: int = 1) -> np.ndarray:
    """Several projections concatenated along the first axis, head by head."""
    if len({tensor.shape for tensor in tensors}) > 1 or len(tensors[0]) % heads:
        raise ValueError(f"they are not {len(tensors)} of the same shape with {heads} heads")
    by_head = [tensor.reshape(heads, -1, *tensor.shape[1:]) for tensor in tensors]
    return np.concatenate(by_head, axis=1).reshape(-1, *tensors[0].shape[1:])


def _rearranged(tensor: np.ndarray, *, heads: int) -> np.ndarray:
    if tensor.shape[-1] % 3:
        raise ValueError(f"its {tensor.shape[-1]} columns are not query, key and value")
    return _fused(*np.split(tensor.T, 3), heads=heads).T


def _transposed(*kernels: np.ndarray, heads: int = 1) -> np.ndarray:
    return _fused(*kernels, heads=heads).T


def _no_bias(*kernels: np.ndarray) -> np.ndarray:
    """A zero bias for kernels [features out, features in] that have none."""
    return np.zeros(sum(map(len, kernels)), np.float32)


def _plus_first(positions: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Every token is in segment 0, so its vector moves into the position table."""
    if positions.shape[1:] != segments.shape[1:]:
        raise ValueError("the two tables differ in width")
    return positions + segments[:1]


def _flattened(kernel: np.ndarray, *, window: tuple[int, int, int]) -> np.ndarray:
    """A convolution's [width, channel, row, column] as a map of flat patches [row x column x channel, width]."""
    if kernel.shape[1:] != window:
        raise ValueError("the convolution has another window")
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


# ------------------------------------------------------------------------------------------- settings


def _encoder_config(settings: Settings, *, placement: str) -> TransformerConfig:
    """The config of BERT or ViT, whose settings have the same names."""
    return _model_config(
        width=_size(settings, "hidden_size"),
        depth=_size(settings, "num_hidden_layers"),
        heads=_size(settings, "num_attention_heads"),
        hidden=_size(settings, "intermediate_size"),
        activation=_activation(settings, "hidden_act", "gelu"),
        norm={"placement": placement, "epsilon": settings.get("layer_norm_eps", 1e-12)},
        causal=False,
    )


def _model_config(*, heads: int, hidden: int, activation: str, width: int, **knobs: Any) -> TransformerConfig:
    attention, ffn = {"num_heads": heads}, {"activation": activation, "expansion": hidden / width}
    return parse(TransformerConfig, {"width": width, "attention": attention, "ffn": ffn, **knobs}, "model")


def _size(settings: Settings, key: str) -> int:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"{key}={value!r} must be a whole number of at least 1; use the config.json that belongs to the weights"
        )
    return value


def _activation(settings: Settings, key: str, default: str) -> str:
    name = settings.get(key, default)
    if name not in ACTIVATION_NAMES:
        raise ConfigError(
            f"{key}={name!r} cannot be expressed by our config; "
            f"choose a model with one of {', '.join(ACTIVATION_NAMES)}"
        )
    return ACTIVATION_NAMES[name]


def _require(settings: Settings, **required: Any) -> None:
    for key, value in required.items():
        if settings.get(key, value) != value:
            raise ConfigError(
                f"{key}={settings[key]!r} of {settings['model_type']} cannot be expressed by our config; "
                f"choose a model with {key}={value!r}"
            )


def _ties(settings: Settings, ties: dict[str, str]) -> dict[str, str]:
    return ties if settings.get("tie_word_embeddings", True) else {}


# -------------------------------------------------------------------------------------------- tensors


def _load(weights: str | os.PathLike | Mapping[str, np.ndarray]) -> Tensors:
    if not isinstance(weights, Mapping):
        weights = load_tensors(Path(weights), "weights")
    # Files of the first BERT models keep TensorFlow's names for a norm's parameters.
    modern = {
        name: name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        for name in weights
    }
    return {name if modern[name] in weights else modern[name]: tensor for name, tensor in weights.items()}


def _body(prefix: str, tensors: Tensors) -> str:
    """`prefix` where the body's names have it, as in a file with a head; else an empty string."""
    return prefix if any(name.startswith(prefix) for name in tensors) else ""


def _outputs(tensors: Tensors) -> int:
    """The number of classes of the classifier; 1 where it is missing, which `_check_names` reports."""
    return np.size(tensors.get("classifier.bias", 0))


def _with_ties(tensors: Tensors, ties: dict[str, str]) -> Tensors:
    """The tensors, and a copy for each tied one that the file leaves out."""
    copies = {copy: tensors[original] for copy, original in ties.items() if original in tensors}
    for copy, tensor in copies.items():
        if copy in tensors and not np.array_equal(tensors[copy], tensor):
            raise ConfigError(
                f"{copy} differs from {ties[copy]}, but tie_word_embeddings=true says that they are equal; "
                "set tie_word_embeddings=false to use both, or drop the wrong one"
            )
    return copies | tensors


def _check_names(tensors: Tensors, plan: Plan, architecture: str) -> None:
    known = {name for source in plan.table.values() for name in source.names}
    missing = known - tensors.keys()
    extra = {name for name in tensors.keys() - known - set(plan.ties.values()) if not re.fullmatch(plan.buffers, name)}
    problems = []
    if missing:
        problems.append(f"the weights lack {_listed(missing)}")
    if extra:
        problems.append(f"the network does not use {_listed(extra)}")
    if problems:
        raise ConfigError(
            f"{' and '.join(problems)}; convert the file that {architecture} saves, with its config.json"
            + (", or name in `drop` what to leave out" if extra else "")
        )


def _listed(names: Iterable[str], most: int = 8) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _make_leaf(path: str, shape: tuple[int, ...], source: Source, tensors: Tensors) -> Array:
    """The leaf at `path` as float32."""
    found = {name: tensors[name] for name in source.names}
    for name, tensor in found.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ConfigError(
                f"{name} is of type {tensor.dtype}, not floating point; save the model without quantisation"
            )
    try:
        leaf = source.make(*(np.asarray(tensor, np.float32) for tensor in found.values()))
    except (ValueError, IndexError, TypeError):  # shapes that do not fit each other
        leaf = None
    if leaf is None or leaf.shape != shape:
        given = ", ".join(f"{name} {tensor.shape}" for name, tensor in found.items())
        raise ConfigError(
            f"{given} cannot make {path}, whose shape is {shape} by the settings; "
            "use the config.json that belongs to the weights"
        )
    return jnp.asarray(leaf)
