"""Converts Hugging Face's models to our networks and back: the same weights give the same logits.

    settings = json.loads(Path("gpt2/config.json").read_text())
    converted = from_huggingface("gpt2/model.safetensors", settings)
    logits, _ = converted.network.apply(converted.params, converted.model_state, symbols)

Text models take symbols [batch, tokens]; BERT and its kin take the attention_mask as `valid`, and every token is in
segment 0. ViT, DeiT and ResNet take images [batch, rows, columns, channels]. Dropout is left out: it does not change
the logits. `models/pretrained/` says of each family where its tensors go.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import ResNetConfig, TransformerConfig
from flaxformer_lab.models.network import PureNetwork, Tree, functionalize
from flaxformer_lab.models.pretrained import decoders, encoders, vision
from flaxformer_lab.models.pretrained.plan import Plan, Settings, Source, Tensors, undo
from flaxformer_lab.models.tensors import load_tensors
from flaxformer_lab.parsing import nearest


class Converted(NamedTuple):
    """The config, the network, its parameters (float32), and its state: averages of batches, which only ResNet has."""

    config: TransformerConfig | ResNetConfig
    network: PureNetwork
    params: Tree
    model_state: Tree

    def __repr__(self) -> str:
        return f"Converted({self.config.name} of width {self.config.width}, {self.network})"


# The families, and the transformers classes whose heads we have: each is a head, or the body alone.
PLANS: dict[str, Callable[[Settings, Tensors, str], Plan]] = {
    "gpt2": decoders.gpt2,
    "bert": encoders.bert,
    "vit": vision.vit,
    "roberta": encoders.roberta,
    "distilbert": encoders.distilbert,
    "deit": vision.vit,
    "gpt_neox": decoders.gpt_neox,
    "llama": decoders.llama,
    "resnet": vision.resnet,
}
_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "Model")
ARCHITECTURES = {
    "gpt2": ("GPT2LMHeadModel",),
    "bert": tuple(f"Bert{head}" for head in _HEADS),
    "vit": ("ViTForImageClassification",),
    "roberta": tuple(f"Roberta{head}" for head in _HEADS),
    "distilbert": tuple(f"DistilBert{head}" for head in _HEADS),
    "deit": ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
    "gpt_neox": ("GPTNeoXForCausalLM",),
    "llama": ("LlamaForCausalLM",),
    "resnet": ("ResNetForImageClassification",),
}


def from_huggingface(
    weights: str | os.PathLike | Mapping[str, np.ndarray], settings: Settings, *, drop: tuple[str, ...] = ()
) -> Converted:
    """Returns the network whose logits are those of the transformers model that wrote these files.

    The model is one of `ARCHITECTURES`; settings["architectures"] says which. A body alone (BertModel) gives the
    vector of every token; its pooler is left out.

    Args:
        weights: a .safetensors file, a folder of the shards of one, or its tensors by their names there.
        settings: the parsed config.json beside it.
        drop: prefixes of the names of tensors to leave out, such as "bert.pooler.".

    Raises:
        ConfigError: another kind of file, model or head, a setting that our config cannot express, a tensor that is
            missing, is not used by the network, or has another shape than in the settings.
    """
    plan, tensors = planned(_load(weights), settings, drop)
    network = functionalize(functools.partial(plan.build, plan.config))

    def filled(shapes: Tree, table: Mapping[str, Source]) -> Tree:
        leaves = [_make_leaf(path, like.shape, table[path], tensors) for path, like in leaf_paths(shapes).items()]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    params, model_state = map(filled, network.shapes, (plan.table, plan.state))
    return Converted(plan.config, network, params, model_state)


def to_huggingface(
    params: Tree, weights: str | os.PathLike | Mapping[str, np.ndarray], settings: Settings
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of `weights` with those that the parameters of its network (`from_huggingface`) say instead.

    In the types that they had; what the network does not use, and its state, stay as they are. Beside them the
    settings, which say tie_word_embeddings=false where training moved tied tensors apart.

    Raises:
        ConfigError: as in `from_huggingface`; parameters of another network; a bias for which the file has no place.
    """
    original = _with_todays_names(_load(weights))
    plan, tensors = planned(original, settings, allow_extra=True)
    leaves, changed = leaf_paths(params), {}
    if leaves.keys() != plan.table.keys():
        raise ConfigError(
            f"these parameters are not those of this model: {_listed(leaves.keys() ^ plan.table.keys())} are in one of "
            "them alone; give those of from_huggingface, or of a run that started from it"
        )
    for path, source in plan.table.items():
        try:
            made = undo(source, np.asarray(leaves[path], np.float32), tensors)
        except ValueError as error:
            raise ConfigError(f"{path} cannot be written into {_listed(source.names)}: {error}") from error
        changed |= made
    for copy, name in plan.ties.items():
        changed.setdefault(name, changed[copy])
    apart = any(not np.array_equal(changed[copy], changed[name]) for copy, name in plan.ties.items())
    kept = original | {copy: tensors[copy] for copy in plan.ties} if apart else original
    written = {name: changed.get(name, tensor).astype(tensor.dtype) for name, tensor in kept.items()}
    return written, {**settings, **({"tie_word_embeddings": False} if apart else {})}


def planned(
    tensors: Tensors, settings: Settings, drop: tuple[str, ...] = (), allow_extra: bool = False
) -> tuple[Plan, Tensors]:
    """The plan of a model, and its tensors by the names that the plan has, with tied ones.

    Of the tensors only names and shapes matter to the plan.

    Raises:
        ConfigError: as in `from_huggingface`; with allow_extra not for tensors that the network does not use.
    """
    kind, tensors = _kind(settings), _with_todays_names(tensors)
    for key in ("num_hidden_layers", "n_layer", "n_layers"):
        depth = settings.get(key)
        if isinstance(depth, int) and depth > len(tensors):
            raise ConfigError(
                f"{key}={depth} with {len(tensors)} tensors: each layer has several; use the config.json that belongs "
                "to the weights"
            )
    architecture = architecture_of(settings, tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(drop)}
    plan = PLANS[kind](settings, tensors, architecture)
    tensors = _with_ties(tensors, plan.ties)
    _check_names(tensors, plan, architecture, allow_extra)
    return plan, tensors


def _kind(settings: Settings) -> str:
    """The family."""
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in PLANS:
        raise ConfigError(
            f"model_type={kind!r} cannot be converted: {nearest(str(kind), PLANS)}choose {', '.join(PLANS)}"
        )
    return kind


def architecture_of(settings: Settings, tensors: Tensors) -> str:
    """The class that wrote the files, as the settings name it; by the tensors where they do not and only one fits."""
    kind, given = _kind(settings), settings.get("architectures")
    supported = ARCHITECTURES[kind]
    if given is None and kind == "bert":
        if any(name.startswith("cls.predictions.") for name in tensors):
            given = ["BertForMaskedLM"]
        elif "classifier.weight" in tensors and not any("pooler." in name for name in tensors):
            given = ["BertForTokenClassification"]
    elif given is None:
        given = [supported[0]] if len(supported) == 1 else None
    if not isinstance(given, list) or len(given) != 1 or given[0] not in supported:
        raise ConfigError(
            f"architectures={given!r} of {kind} cannot be converted; choose a model with one of "
            f"{', '.join(supported)}, or name the one whose head the tensors have"
        )
    return given[0]


# -------------------------------------------------------------------------------------------- tensors


def _load(weights: str | os.PathLike | Mapping[str, np.ndarray]) -> Tensors:
    if not isinstance(weights, Mapping):
        return load_tensors(Path(weights), "weights")
    return dict(weights)


def _with_todays_names(tensors: Tensors) -> Tensors:
    """Files of the first BERT models keep TensorFlow's names for a norm's parameters."""
    todays = {
        name: name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        for name in tensors
    }
    return {name if todays[name] in tensors else todays[name]: tensor for name, tensor in tensors.items()}


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


def _check_names(tensors: Tensors, plan: Plan, architecture: str, allow_extra: bool = False) -> None:
    known = {name for source in (*plan.table.values(), *plan.state.values()) for name in source.names}
    missing = known - tensors.keys()
    extra = {name for name in tensors.keys() - known - set(plan.ties.values()) if not re.fullmatch(plan.buffers, name)}
    problems, extra = [], set() if allow_extra else extra
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
    if leaf is not None and not np.all(np.isfinite(leaf)):
        raise ConfigError(f"{', '.join(found)}: values that are not finite; the file is damaged")
    if leaf is None or leaf.shape != shape:
        given = ", ".join(f"{name} {tensor.shape}" for name, tensor in found.items())
        raise ConfigError(
            f"{given} cannot make {path}, whose shape is {shape} by the settings; "
            "use the config.json that belongs to the weights"
        )
    return jnp.asarray(leaf)
