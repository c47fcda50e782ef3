"""Parts of a trained Transformer removed, or replaced by something simpler, with no training afterwards.

A cut is data: a pytree of numbers that hooks read while the network runs, so that one compiled program serves all cuts
of a shape. Each layer's attention and FFN become `keep` of what they give, plus a linear map of what they take (mean
and zero are maps without a matrix), plus what they give for another text of the batch.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.models.hooks import NamedHooks
from flaxformer_lab.models.network import PureNetwork, Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """What becomes of the output y of a part with input x: keep y + other y' + x matrix + offset, y' of another text.

    matrix may be of a single row and column, for none.
    """

    keep: Any
    other: Any
    matrix: Any
    offset: Any

    def __call__(self, x: Array, y: Array) -> Array:
        linear = x @ self.matrix if self.matrix.shape[0] > 1 else 0.0
        return self.keep * y + self.other * jnp.roll(y, 1, axis=0) + linear + self.offset[None, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    """One layer's cut.

    heads: [heads] 1 or 0: what of each head is kept; instead: [heads, head_dim] what is put in its place.
    weights: (softmax, uniform, static) shares of the attention weights; static: [heads, tokens, tokens] logits.
    diagonal: [heads, features] of each head's W_q W_k^T, or None; bias: [heads, features], the part linear in the key.
    values: [heads, features] of each head's W_v W_o, with its offset [features], or None. own_scores, own_values: 1
    where the layer's own are kept nevertheless.
    block: what the block adds to its input. attention_there, ffn_there: share of each part with its norm that is kept;
    the rest is what came in. norms: share of each norm of the layer that is kept.
    """

    attention: Part
    ffn: Part
    heads: Any
    instead: Any
    weights: Any
    static: Any
    block: Part
    attention_there: Any
    ffn_there: Any
    norms: Any
    diagonal: Any = None
    bias: Any = None
    values: Any = None
    value_offset: Any = None
    own_scores: Any = None
    own_values: Any = None


def intact(config: TransformerConfig, *, tokens: int = 1) -> Layer:
    """A cut that changes nothing; tokens: of the static weights that `with_static` fills in."""
    one, zero, width = jnp.float32(1), jnp.float32(0), config.width
    heads, part = config.attention.num_heads, Part(one, zero, jnp.zeros((1, 1)), jnp.zeros(width))
    return Layer(
        attention=part,
        ffn=part,
        heads=jnp.ones(heads),
        instead=jnp.zeros((heads, config.head_dim)),
        weights=jnp.array([1.0, 0.0, 0.0]),
        static=jnp.zeros((heads, tokens, tokens)),
        block=part,
        attention_there=one,
        ffn_there=one,
        norms=one,
    )


def hooks_of(config: TransformerConfig, cuts: list[Layer], valid: Bool[Array, "batch tokens"]) -> NamedHooks:
    """Hooks that do the cuts of all layers, for texts whose padding `valid` says."""
    return [pair for number, cut in enumerate(cuts) for pair in _of_layer(number, cut, config, valid)]


def _of_layer(number: int, cut: Layer, config: TransformerConfig, valid: Array):
    seen: dict[str, Array] = {}
    place, post = f"blocks.{number}", config.norm.placement == "post"

    def normalised(x: Array, before: Array) -> Array:
        """What a norm before a part gives, as far as it is kept."""
        return x if post else cut.norms * x + (1 - cut.norms) * before

    def scores(found: Array) -> Array | None:
        if cut.diagonal is None:
            return None
        x = seen["attention"]
        query = x[:, :, None] * cut.diagonal[None, None]
        new = jnp.einsum("bqhc,bkc->bhqk", query, x) + jnp.einsum("hc,bkc->bhk", cut.bias, x)[:, :, None]
        return cut.own_scores * found + (1 - cut.own_scores) * new * config.head_dim**-0.5

    def weights(found: Array) -> Array:
        tokens = found.shape[-1]
        sees = valid[:, None, None] & (jnp.tri(tokens, dtype=bool)[None, None] if config.causal else True)
        uniform = sees.astype(found.dtype)
        uniform = uniform / jnp.maximum(uniform.sum(-1, keepdims=True), 1)
        mixed = cut.weights[0] * found + cut.weights[1] * uniform
        if cut.static.shape[-1] > 1:
            static = jnp.where(sees, jnp.maximum(cut.static[None, :, :tokens, :tokens], 1e-9), 0)
            mixed = mixed + cut.weights[2] * static / jnp.maximum(static.sum(-1, keepdims=True), 1e-9)
        seen["weights"] = mixed
        return mixed

    def z(found: Array) -> Array:
        return found * cut.heads[None, None, :, None] + cut.instead[None, None]

    def attention_input(x: Array) -> Array:
        seen["attention"] = normalised(x, seen["input"])
        return seen["attention"]

    def attention(y: Array) -> Array:
        if cut.values is not None:
            moved = jnp.einsum("bhqk,bkc,hc->bqc", seen["weights"], seen["attention"], cut.values)
            y = cut.own_values * y + (1 - cut.own_values) * (moved + cut.value_offset[None, None])
        seen["attention_out"] = cut.attention(seen["attention"], y)
        return seen["attention_out"]

    def ffn_input(x: Array) -> Array:
        seen["ffn"] = normalised(x, seen["input" if config.parallel else "middle"])
        return seen["ffn"]

    def ffn(y: Array) -> Array:
        seen["ffn_out"] = cut.ffn(seen["ffn"], y)
        return seen["ffn_out"]

    def after_attention(x: Array) -> Array:
        if post:
            x = cut.norms * x + (1 - cut.norms) * (seen["input"] + seen["attention_out"])
        seen["middle"] = cut.attention_there * x + (1 - cut.attention_there) * seen["input"]
        return seen["middle"]

    def output(x: Array) -> Array:
        if post:
            x = cut.norms * x + (1 - cut.norms) * (seen["middle"] + seen["ffn_out"])
        x = cut.ffn_there * x + (1 - cut.ffn_there) * seen["middle"]
        return seen["input"] + cut.block(seen["input"], x - seen["input"])

    yield f"{place}.input", lambda x: seen.update(input=x)
    yield f"{place}.attention.input", attention_input
    yield f"{place}.attention.scores", scores
    yield f"{place}.attention.weights", weights
    yield f"{place}.attention.z", z
    yield f"{place}.attention.output", attention
    yield f"{place}.after_attention", after_attention
    yield f"{place}.ffn.input", ffn_input
    yield f"{place}.ffn.output", ffn
    yield f"{place}.output", output


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_cut(
    network: "Frozen", config: TransformerConfig, params: Tree, cuts: list[Layer], inputs: Array, valid: Array
) -> Array:
    """The outputs of the network with the cuts; padding is never attended to."""
    hooks = hooks_of(config, cuts, valid)
    return network.network.with_hooks(hooks).apply(params, {}, inputs, valid=valid)[0]


@dataclass(frozen=True, eq=False)
class Frozen:
    """A network as a static argument: equal to itself alone."""

    network: PureNetwork


# -------------------------------------------------------------------------------------------- closed forms


@dataclass(frozen=True)
class AffineFit:
    """The affine map of x that is nearest to y in squares: y = x matrix + offset.

    r2: of tokens that it was not fitted to; errors and deviations: its parts, by token: r2 = 1 - sum / sum.
    """

    matrix: Float[np.ndarray, "inputs outputs"]
    offset: Float[np.ndarray, " outputs"]
    r2: float
    errors: Float[np.ndarray, " tokens"]
    deviations: Float[np.ndarray, " tokens"]


def fit_affine(
    x: Float[np.ndarray, "tokens inputs"], y: Float[np.ndarray, "tokens outputs"], *, ridge: float = 1e-4
) -> AffineFit:
    """Least squares on four of five tokens, with a ridge of that share of the mean variance; r2 on the fifth.

    R2 is 1 - sum of squared errors / sum of squared deviations from the mean, over all outputs together.
    """
    held = np.arange(len(x)) % 5 == 4
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = x[~held].mean(0), y[~held].mean(0)
    centred, target = x[~held] - mean_x, y[~held] - mean_y
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram)
    matrix = np.linalg.solve(gram, centred.T @ target)
    offset = mean_y - mean_x @ matrix
    errors = np.sum((y[held] - x[held] @ matrix - offset) ** 2, axis=1)
    deviations = np.sum((y[held] - y[held].mean(0)) ** 2, axis=1)
    r2 = float(1 - errors.sum() / deviations.sum())
    return AffineFit(matrix.astype(np.float32), offset.astype(np.float32), r2, errors, deviations)


def fit_by_feature(
    x: Float[np.ndarray, "tokens features"], y: Float[np.ndarray, "tokens features"]
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """The nearest map that mixes no features: slope and offset of each output feature on the input of its index."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    centred = x - x.mean(0)
    slope = np.sum(centred * (y - y.mean(0)), 0) / np.maximum(np.sum(centred**2, 0), 1e-12)
    return slope.astype(np.float32), (y.mean(0) - slope * x.mean(0)).astype(np.float32)


# ----------------------------------------------------------------------------------------- query, key, value


@dataclass(frozen=True)
class HeadMaps:
    """One layer's attention by heads.

    Grouped heads of keys and values are repeated for the queries that share them.
    """

    query: Float[np.ndarray, "heads width head_dim"]
    key: Float[np.ndarray, "heads width head_dim"]
    value: Float[np.ndarray, "heads width head_dim"]
    query_bias: Float[np.ndarray, "heads head_dim"]
    key_bias: Float[np.ndarray, "heads head_dim"]
    value_bias: Float[np.ndarray, "heads head_dim"]
    output: Float[np.ndarray, "heads head_dim width"]
    output_bias: Float[np.ndarray, " width"]


def head_maps(params: Tree, config: TransformerConfig, layer: int) -> HeadMaps:
    """The maps of one layer, from a network's parameters."""
    part = params["body"]["blocks"][layer]["attention"]
    groups, head_dim, width = config.num_kv_heads, config.head_dim, config.width
    each = config.attention.num_heads // groups
    kernel, output = (np.asarray(part[name]["kernel"]) for name in ("projection", "output"))
    bias = np.asarray(part["projection"].get("bias", np.zeros(kernel.shape[1], np.float32)))
    grid = np.concatenate([kernel, bias[None]]).reshape(width + 1, groups, each + 2, head_dim)
    query = grid[:, :, :each].reshape(width + 1, -1, head_dim).transpose(1, 0, 2)
    key, value = (np.repeat(grid[:, :, each + n], each, axis=1).transpose(1, 0, 2) for n in (0, 1))
    maps = [part[:, :width] for part in (query, key, value)], [part[:, width] for part in (query, key, value)]
    output_bias = np.asarray(part["output"].get("bias", np.zeros(width, np.float32)))
    return HeadMaps(*maps[0], *maps[1], output.reshape(-1, head_dim, width), output_bias)


def per_dimension_scores(maps: HeadMaps) -> tuple[np.ndarray, np.ndarray]:
    """The diagonal of each head's W_q W_k^T, and b_q W_k^T: feature c of a query meets only feature c of a key."""
    return np.einsum("hcd,hcd->hc", maps.query, maps.key), np.einsum("hd,hcd->hc", maps.query_bias, maps.key)


def per_dimension_values(maps: HeadMaps) -> tuple[np.ndarray, np.ndarray]:
    """The diagonal of each head's W_v W_o, and what biases add: feature c of a token reaches only feature c."""
    offset = np.einsum("hd,hdc->c", maps.value_bias, maps.output) + maps.output_bias
    return np.einsum("hcd,hdc->hc", maps.value, maps.output), offset


def with_rank(params: Tree, config: TransformerConfig, layers: list[int], rank: int) -> Tree:
    """Parameters whose W_q W_k^T has the best approximation of that rank, biases included, in each head of the layers.

    For as many heads of keys as of queries.
    """
    params = jax.tree.map(lambda leaf: leaf, params)
    width, head_dim, heads = config.width, config.head_dim, config.attention.num_heads
    for layer in layers:
        maps, part = head_maps(params, config, layer), params["body"]["blocks"][layer]["attention"]["projection"]
        kernel, bias = np.array(part["kernel"]), np.array(part["bias"])
        grid, small = kernel.reshape(width, heads, 3, head_dim), bias.reshape(heads, 3, head_dim)
        for head in range(heads):
            query = np.vstack([maps.query[head], maps.query_bias[head]])
            key = np.vstack([maps.key[head], maps.key_bias[head]])
            left, values, right = np.linalg.svd(query @ key.T, full_matrices=False)
            root = np.sqrt(values[:head_dim]) * (np.arange(head_dim) < rank)
            query, key = left[:, :head_dim] * root, right[:head_dim].T * root
            grid[:, head, 0], small[head, 0], grid[:, head, 1], small[head, 1] = (
                query[:-1],
                query[-1],
                key[:-1],
                key[-1],
            )
        params["body"]["blocks"][layer]["attention"]["projection"] = {
            "kernel": jnp.asarray(kernel),
            "bias": jnp.asarray(bias),
        }
    return params


def replace_layers(layers: list[Layer], changes: dict[int, dict[str, Any]]) -> list[Layer]:
    """The cuts with fields of some layers changed."""
    return [dataclasses.replace(layer, **changes.get(number, {})) for number, layer in enumerate(layers)]
