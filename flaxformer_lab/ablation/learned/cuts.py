"""The cuts of a pretrained model, each a change of some layers or of the parameters, and those that mean nothing."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flaxformer_lab.ablation.learned.parts import Parts
from flaxformer_lab.analysis import surgery
from flaxformer_lab.analysis.surgery import Layer
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.models.network import Tree

Change = Callable[[int], Mapping[str, Any]]  # from a layer's number to the fields of its cut
RANKS = "query-key products of rank {}"
PER_DIMENSION = ("per-dimension QK", "per-dimension QK and OV")
ZERO = ("attention zero", "FFN zero")
PRE_NORM = "norms come before the parts, so a part that gives zero is a part that is removed with its norm"
ROTARY = (
    "positions are rotary, so what joins the features of a query and of a key depends on their distance: "
    "there is no one matrix W_q W_k^T"
)


@dataclass(frozen=True)
class Cut:
    """name: of the kind; place: `all`, or a layer's number. layers(): the cut; params(): other parameters, or None."""

    name: str
    place: str
    layers: Callable[[], list[Layer]]
    params: Callable[[], Tree] | None = None


def left_out(config: TransformerConfig, ranks: Sequence[int]) -> dict[str, str]:
    """The cuts that mean nothing for this kind of model, or the same as others, with the reason."""
    absent = dict.fromkeys(ZERO if config.norm.placement == "pre" else (), PRE_NORM)
    rotary = (*PER_DIMENSION, *map(RANKS.format, ranks)) if config.position == "rotary" else ()
    return absent | dict.fromkeys(rotary, ROTARY)


def make_cuts(parts: Parts, ranks: Sequence[int]) -> Iterator[Cut]:
    """Every cut that is not left out, the cheapest programs first."""
    without = left_out(parts.config, ranks)
    return (cut for cut in _all_cuts(parts, ranks) if cut.name not in without)


def _all_cuts(parts: Parts, ranks: Sequence[int]) -> Iterator[Cut]:
    config, depth = parts.config, parts.config.depth
    base, zero = [surgery.intact(config)] * depth, jnp.float32(0)
    places = {"all": range(depth)} | {str(number): [number] for number in range(depth)}

    def cut(name: str, place: str, change: Change, start: Callable[[], list[Layer]] = lambda: base) -> Cut:
        changes = lambda: {number: dict(change(number)) for number in places[place]}  # noqa: E731
        return Cut(name, place, lambda: surgery.replace_layers(start(), changes()))

    yield Cut("intact", "all", lambda: base)
    by_layer: dict[str, Change] = {
        "attention removed": lambda _: {"attention_there": zero},
        "FFN removed": lambda _: {"ffn_there": zero},
        "uniform attention": lambda _: {"weights": jnp.array([0.0, 1.0, 0.0])},
        "block removed": lambda _: {"block": parts.constant(0.0)},
    }
    for name, change in by_layer.items():
        for place in places if name != "block removed" else list(places)[1:]:
            yield cut(name, place, change)
    resampled = dataclasses.replace(parts.constant(0.0), other=jnp.float32(1))
    whole: dict[str, Change] = {
        ZERO[0]: lambda _: {"attention": parts.constant(0.0)},
        ZERO[1]: lambda _: {"ffn": parts.constant(0.0)},
        "attention mean": lambda n: {"attention": parts.mean(n, "attention")},
        "FFN mean": lambda n: {"ffn": parts.mean(n, "ffn")},
        "attention resampled": lambda _: {"attention": resampled},
        "FFN resampled": lambda _: {"ffn": resampled},
        "single head": lambda n: _heads(parts, n, _best_head(parts, n)),
        "norms off": lambda _: {"norms": zero},
    }
    for name, change in whole.items():
        yield cut(name, "all", change)
    linear: dict[str, Change] = {
        "linear FFN": lambda n: {"ffn": parts.affine(n, "ffn")},
        "linear attention output": lambda n: {"attention": parts.affine(n, "attention")},
        "FFN of single features": lambda n: {"ffn": parts.by_feature(n)},
        "linear block": lambda n: {"block": parts.affine_block(n)},
    }
    for name, change in linear.items():
        for place in places if name in ("linear FFN", "linear block") else ["all"]:
            yield cut(name, place, change, lambda: _with_matrices(config))
    single: dict[str, Change] = {
        PER_DIMENSION[0]: lambda n: _scores(parts, n),
        "per-dimension OV": lambda n: _values(parts, n),
        PER_DIMENSION[1]: lambda n: _scores(parts, n) | _values(parts, n),
    }
    for name, change in single.items():
        yield cut(name, "all", change, lambda: _with_diagonals(config))
    for rank in ranks:
        params = functools.partial(surgery.with_rank, parts.params, config, list(range(depth)), rank)
        yield Cut(RANKS.format(rank), "all", lambda: base, params)
    with_places = lambda: [surgery.intact(config, tokens=parts.judge.tokens)] * depth  # noqa: E731
    yield cut("static attention", "all", functools.partial(_static, parts), with_places)
    for number in range(depth):
        yield cut("per-dimension OV", str(number), single["per-dimension OV"], lambda: _with_diagonals(config))
    for number in range(depth):
        for head in range(config.attention.num_heads):
            kept = jnp.ones(config.attention.num_heads).at[head].set(0)
            yield cut(f"head {head} mean", str(number), functools.partial(_heads, parts, kept=kept))


def _heads(parts: Parts, number: int, kept: jax.Array) -> dict[str, Any]:
    """What the other heads give on average, [heads, head_dim], is in their place."""
    return {"heads": kept, "instead": parts.head_outputs[0][number] * (1 - kept)[:, None]}


def _best_head(parts: Parts, number: int) -> jax.Array:
    """1 for the head whose part of the output is largest, 0 for the others."""
    return jax.nn.one_hot(int(parts.head_outputs[1][number].argmax()), parts.config.attention.num_heads)


def _static(parts: Parts, number: int) -> dict[str, Any]:
    weights = parts.activations[number]["weights"]
    mean = weights / weights.sum(-1, keepdims=True).clip(1e-9)
    return {"static": jnp.asarray(mean), "weights": jnp.array([0.0, 0.0, 1.0])}


def _scores(parts: Parts, number: int) -> dict[str, Any]:
    diagonal, bias = surgery.per_dimension_scores(parts.maps(number))
    return {"diagonal": jnp.asarray(diagonal), "bias": jnp.asarray(bias), "own_scores": jnp.float32(0)}


def _values(parts: Parts, number: int) -> dict[str, Any]:
    values, offset = surgery.per_dimension_values(parts.maps(number))
    return {"values": jnp.asarray(values), "value_offset": jnp.asarray(offset), "own_values": jnp.float32(0)}


def _with_matrices(config: TransformerConfig) -> list[Layer]:
    """Of a program of its own, since matrices have another shape."""
    layer = surgery.intact(config)
    part = dataclasses.replace(layer.ffn, matrix=jnp.zeros((config.width, config.width)))
    return [dataclasses.replace(layer, attention=part, ffn=part, block=part)] * config.depth


def _with_diagonals(config: TransformerConfig) -> list[Layer]:
    zeros = jnp.zeros((config.attention.num_heads, config.width))
    each = dataclasses.replace(
        surgery.intact(config),
        diagonal=zeros,
        bias=zeros,
        own_scores=jnp.float32(1),
        values=zeros,
        value_offset=jnp.zeros(config.width),
        own_values=jnp.float32(1),
    )
    return [each] * config.depth
