"""A whole network, from raw inputs to logits, and its pure form: plain parameters in, logits out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.bodies import make_body
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.taps import CLOSED, Taps

Tree = Any  # a pytree of arrays


class Network(nnx.Module):
    """Embedding, body, pooling, head. The body maps token vectors to token vectors: a Transformer or a baseline.

    grid: how the tokens are laid out, (tokens,) or (rows, columns). head: None makes a dense one.
    pooling: off (logits for every token), mean (over tokens), class_token (the first token), last (the last one).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: nnx.Module,
        grid: tuple[int, ...],
        outputs: int,
        pooling: str = "off",
        head: nnx.Module | None = None,
        rngs: nnx.Rngs,
    ):
        self._pooling = pooling
        self.embedding = embedding
        self.body = make_body(config, grid=grid, rngs=rngs)
        self.head = head or Dense(config.width, outputs, bias=config.bias, rngs=rngs)

    def __call__(
        self,
        inputs: Array,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        keys: Key[Array, " batch"] | None = None,
        taps: Taps = CLOSED,
    ) -> Float[Array, "batch *tokens outputs"]:
        x = self.body(self.embedding(inputs), valid=valid, keys=keys, taps=taps)
        if self._pooling == "mean":
            x = jnp.mean(x, axis=1) if valid is None else _mean_of_valid(x, valid)
        elif self._pooling == "class_token":
            x = x[:, 0]
        elif self._pooling == "last":
            x = x[:, -1]
        return self.head(x).astype(jnp.float32)


def _mean_of_valid(x: Float[Array, "batch tokens width"], valid: Bool[Array, "batch tokens"]):
    weights = valid[:, :, None].astype(x.dtype)
    return jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)


@dataclass(frozen=True)
class PureNetwork:
    """A network as functions of plain pytrees; the static part was captured once.

    init(key) -> (params, model_state). params are what the optimizer moves; model_state is the rest (often empty).
    shapes: the same pair as shapes and types.
    apply(params, model_state, inputs, *, valid, keys, taps) -> logits.
    embed(params, model_state, inputs) -> token vectors; body(params, model_state, vectors, *, valid, taps) -> token
    vectors: the parts of `apply` between which the measures of mixing look.
    """

    init: Callable[[Key[Array, ""]], tuple[Tree, Tree]]
    shapes: tuple[Tree, Tree]
    apply: Callable[..., Array]
    embed: Callable[[Tree, Tree, Array], Array]
    body: Callable[..., Array]

    def intermediates(self, params: Tree, model_state: Tree, inputs: Array, **options: Any) -> dict[str, Array]:
        """Every value that the network's modules offer, by dotted name: attention weights, each block's output."""
        taps = Taps()
        self.apply(params, model_state, inputs, taps=taps, **options)
        return taps.values


def purify(build: Callable[[nnx.Rngs], nnx.Module]) -> PureNetwork:
    """Returns the pure form of the network that `build` makes."""
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(params=0)))
    graph, *shapes = nnx.split(abstract, nnx.Param, ...)

    def init(key: Key[Array, ""]) -> tuple[Tree, Tree]:
        _, params, model_state = nnx.split(build(nnx.Rngs(params=key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

    def apply(params: Tree, model_state: Tree, inputs: Array, **options: Any) -> Array:
        return nnx.merge(graph, params, model_state)(inputs, **options)

    def embed(params: Tree, model_state: Tree, inputs: Array) -> Array:
        return nnx.merge(graph, params, model_state).embedding(inputs)

    def body(params: Tree, model_state: Tree, vectors: Array, **options: Any) -> Array:
        return nnx.merge(graph, params, model_state).body(vectors, **options)

    return PureNetwork(jax.jit(init), tuple(map(nnx.to_pure_dict, shapes)), apply, embed, body)


def leaf_paths(tree: Tree) -> dict[str, Any]:
    """Returns `{"body.blocks.0.ffn.up.kernel": leaf, ...}` of a pytree of nested dictionaries."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}
