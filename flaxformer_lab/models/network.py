"""A whole network, from raw inputs to logits, and its pure form: plain parameters in, logits out."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.products import at_precision
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.bodies import Grid, make_body
from flaxformer_lab.models.hooks import NamedHooks, pairs, resolve
from flaxformer_lab.modules.intermediates import DISABLED, Hook, Intermediates
from flaxformer_lab.modules.lazy_logits import lazy_logits
from flaxformer_lab.modules.projection import Dense, Fans
from flaxformer_lab.modules.rngs import AbstractRngs, Rngs
from flaxformer_lab.modules.sharding import Axes

Tree = Any  # a pytree of arrays


class Network(nnx.Module):
    """Embedding, body, pooling, head. The body maps token vectors to token vectors: a Transformer or a baseline.

    Inputs and outputs are pytrees, as the task has them: `embedding` turns inputs into what the body takes, `head`
    turns token vectors into outputs. A head with `reads_inputs = True` is called as head(x, inputs). An embedding may
    make several sequences of an example, side by side on the first axis; such a head brings them together again.
    grid: how the tokens are laid out, (tokens,) or (rows, columns). head: None makes a dense one.
    pooling: off (outputs for every token), mean (over tokens), class_token (the first token), last (the last one).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: nnx.Module,
        grid: Grid,
        outputs: int,
        pooling: str = "off",
        head: nnx.Module | None = None,
        rngs: Rngs,
    ):
        self._pooling, self._tokens = pooling, None if isinstance(grid, dict) else math.prod(grid)
        declared = (registry.ask("model", config.name, key, config, self._tokens) for key in ("causal", "decodes"))
        self._causal, self._decodes = (each is True for each in declared)
        self.precision = config.precision
        self.embedding = embedding
        self.body = make_body(config, grid=grid, rngs=rngs)
        features = getattr(self.body, "features_out", config.width)
        self.head = head or Dense(features, outputs, axes=("width", None), bias=config.bias, rngs=rngs)

    def __call__(
        self,
        inputs: Tree,
        *,
        valid: Tree = None,
        keys: Key[Array, " batch"] | None = None,
        intermediates: Intermediates = DISABLED,
        loss_chunk: int | None = None,
    ) -> Tree:
        """Outputs in float32. valid: which tokens are not padding, [batch, tokens]; None: all of them.

        loss_chunk: the outputs may be `LazyLogits`, computed by so many rows at a time, or AUTOMATIC (a number that
        fits the size); None: they are logits.
        """
        if getattr(self.embedding, "class_token", None) is not None and valid is not None:
            valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        x = self.embedding(inputs)
        x = self.body(x, valid=valid, keys=_one_per_sequence(keys, x), intermediates=intermediates)
        valid = valid["target"] if isinstance(valid, dict) else valid
        x = self._pool(x, valid)
        lazy = None if loss_chunk is None else lazy_logits(x, self.head, loss_chunk)
        if lazy is not None:
            return lazy
        outputs = self._head(x, inputs)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)

    def _head(self, x: Array | dict[str, Array], inputs: Tree) -> Tree:
        return self.head(x, inputs) if getattr(self.head, "reads_inputs", False) else self.head(x)

    def _pool(
        self, x: Float[Array, "batch tokens width"] | dict[str, Array], valid: Bool[Array, "batch tokens"] | None
    ) -> Float[Array, "batch *tokens width"] | dict[str, Array]:
        if self._pooling == "mean":
            return jnp.mean(x, axis=1) if valid is None else _mean_of_valid(x, valid)
        if self._pooling == "class_token":
            return x[:, 0]
        if self._pooling == "last":
            places = jnp.arange(x.shape[1])[None]
            return x[:, -1] if valid is None else _take_token(x, jnp.max(jnp.where(valid, places, 0), axis=1))
        return x

    def prefill(
        self, inputs: Int[Array, "batch tokens"], lengths: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch outputs"], Tree]:
        """Logits at the last of each example's first `lengths` inputs, and the cache from which `decode` goes on.

        There may be fewer than the network has tokens: the cache has room for the rest. A body that has no cache of its
        own keeps the inputs themselves, and reads them again at each step.

        Raises:
            ConfigError: the body is not causal, so later inputs would change earlier outputs; or the head reads all
                inputs.
        """
        if getattr(self.head, "reads_inputs", False):
            raise ConfigError(
                f"the head {type(self.head).__name__} reads all inputs (reads_inputs = True), so this network cannot "
                "decode token by token; give it a head that takes the token vectors alone"
            )
        if self._tokens is None:
            raise ConfigError("model.name=encoder_decoder cannot decode token by token; choose model.name=transformer")
        if not self._causal:
            raise ConfigError(
                "a model with model.causal=false lets a token see later ones, so it cannot decode token by token; "
                "set model.causal=true or choose another model.name"
            )
        if self._decodes:
            x, cache = self.body.prefill(self.embedding(inputs), lengths)
        else:
            inputs = jnp.pad(inputs, ((0, 0), (0, self._tokens - inputs.shape[1])))
            x, cache = self.body(self.embedding(inputs)), {"inputs": inputs, "lengths": lengths}
        return self.head(_take_token(x, lengths - 1)).astype(jnp.float32), cache

    def decode(self, inputs: Int[Array, " batch"], cache: Tree) -> tuple[Float[Array, "batch outputs"], Tree]:
        """Logits after one more input of each example, and the cache that includes it."""
        if not self._decodes:
            lengths = cache["lengths"]
            return self.prefill(cache["inputs"].at[jnp.arange(inputs.shape[0]), lengths].set(inputs), lengths + 1)
        x, cache = self.body.decode(self.embedding(inputs[:, None]), cache)
        return self.head(x[:, 0]).astype(jnp.float32), cache


def _one_per_sequence(keys: Key[Array, " batch"] | None, x: Tree) -> Key[Array, " sequences"] | None:
    """Keys for all sequences, where the embedding made several of an example."""
    if keys is None or isinstance(x, dict) or x.shape[0] == keys.shape[0]:
        return keys
    each = x.shape[0] // keys.shape[0]
    return jax.vmap(lambda key: jax.random.split(key, each))(keys).reshape(x.shape[0])


def _take_token(x: Float[Array, "batch tokens width"], places: Int[Array, " batch"]) -> Float[Array, "batch width"]:
    """The token of each example at its place."""
    return jnp.take_along_axis(x, places[:, None, None], axis=1)[:, 0]


def _mean_of_valid(x: Float[Array, "batch tokens width"], valid: Bool[Array, "batch tokens"]):
    """In float32, and 0 without a valid token."""
    weights = valid[:, :, None].astype(jnp.float32)
    return (jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)).astype(x.dtype)


@dataclass(frozen=True, repr=False)
class PureNetwork:
    """A network as functions of plain pytrees; the static part was captured once.

    init(key) -> (params, model_state). params are what the optimizer moves; model_state is the rest (often empty).
    shapes: the same pair as shapes and types. axes: the names of each parameter's axes, by its dotted name.
    fans: of each parameter that is a map over features, by its dotted name.
    apply(params, model_state, inputs, *, valid, keys, intermediates, loss_chunk, training, axis_name) ->
    (outputs, model_state):
    inputs and outputs are pytrees. With training=True a state such as BatchNorm's averages is updated, over all devices
    of the mapped axis `axis_name` where there is one; else it is used and returned as it is.
    embed(params, model_state, inputs) -> token vectors; body(params, model_state, vectors, *, valid, intermediates)
    -> token vectors: the two halves of `apply`; measures of mixing look at the body.
    prefill(params, model_state, inputs, lengths, *, room) -> (logits, cache); decode(params, model_state, inputs,
    cache) -> (logits, cache): a causal network token by token (`Network.prefill`, `Network.decode`). room: tokens that
    the cache has slots for, at least those of the inputs; None: as many as the network has.
    precision: of the float32 products (`model.precision`), for callers that trace more than these functions.
    vocabulary: how many symbols the embedding has; None where the inputs are not symbols. These
    functions refuse other symbols where they see their values; inside `jax.jit` such symbols give NaN.
    hooks: those of `with_hooks`; bare: the network without them.
    """

    init: Callable[[Key[Array, ""]], tuple[Tree, Tree]]
    shapes: tuple[Tree, Tree]
    apply: Callable[..., tuple[Tree, Tree]]
    embed: Callable[[Tree, Tree, Tree], Tree]
    body: Callable[..., Array]
    axes: dict[str, Axes] = field(default_factory=dict)
    fans: dict[str, Fans] = field(default_factory=dict)
    prefill: Callable[..., tuple[Array, Tree]] | None = None
    decode: Callable[..., tuple[Array, Tree]] | None = None
    precision: str = "highest"
    vocabulary: int | None = None
    hooks: tuple[tuple[str, Hook], ...] = ()
    bare: "PureNetwork | None" = None

    def __repr__(self) -> str:
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes[0]))
        return f"PureNetwork({size:,} parameters{f', {len(self.hooks)} hooks' if self.hooks else ''})"

    def check_symbols(self, inputs: Tree) -> None:
        """Looks at symbols whose values are known.

        Raises:
            ConfigError: a symbol is outside the vocabulary.
        """
        _check_symbols(inputs, self.vocabulary)

    def intermediates(self, params: Tree, model_state: Tree, inputs: Tree, **options: Any) -> dict[str, Array]:
        """Every value that the network's modules offer, by dotted name: attention weights, each block's output."""
        return self.run_with_cache(params, model_state, inputs, **options)[1]

    def run_with_cache(
        self, params: Tree, model_state: Tree, inputs: Tree, *, names: Sequence[str] = ("*",), **options: Any
    ) -> tuple[Tree, dict[str, Array]]:
        """The outputs, and the intermediate values whose names fit one of the patterns; options as in `apply`."""
        collects = lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in names)  # noqa: E731
        collected = Intermediates(collects=collects)
        outputs, _ = self.apply(params, model_state, inputs, intermediates=collected, **options)
        return outputs, collected.values

    def run_with_hooks(self, params: Tree, model_state: Tree, inputs: Tree, hooks: NamedHooks, **options: Any) -> Tree:
        """The outputs, with hooks that read or replace intermediate values; options as in `apply`.

        Outside of `jax.jit` a hook gets the values themselves.

        Raises:
            ConfigError: a name that the network does not offer, or a hook that returns another shape.
        """
        return self.with_hooks(hooks).apply(params, model_state, inputs, **options)[0]

    def with_hooks(self, hooks: NamedHooks) -> "PureNetwork":
        """This network with hooks (`models/hooks.py`) in `apply` and `body`, after those that it has already."""
        bare, hooks = self.bare or self, (*self.hooks, *pairs(hooks))

        def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(params: Tree, model_state: Tree, inputs: Tree, *, intermediates=DISABLED, **options: Any) -> Any:
                offered = Intermediates()
                run = lambda *arguments: function(*arguments, intermediates=offered, **options)  # noqa: E731
                jax.eval_shape(run, params, model_state, inputs)  # for the names, in the order of the forward pass
                inner = intermediates.with_hooks(resolve(hooks, list(offered.values)))
                return function(params, model_state, inputs, intermediates=inner, **options)

            return call

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise ConfigError("a network with hooks cannot decode with a cache, which they do not see; use apply")

        functions = {name: hooked(getattr(bare, name)) for name in ("apply", "body")}
        return dataclasses.replace(bare, **functions, prefill=refuse, decode=refuse, hooks=hooks, bare=bare)


def _check_symbols(inputs: Tree, vocabulary: int | None) -> None:
    for leaf in jax.tree.leaves(inputs) if vocabulary else ():
        if isinstance(leaf, jax.core.Tracer) or not getattr(leaf, "is_fully_addressable", True):
            continue
        symbols = np.asarray(jax.device_get(leaf))
        outside = symbols[(symbols < 0) | (symbols >= vocabulary)]
        if outside.size:
            raise ConfigError(
                f"symbol {outside[0]} is not one of this network's vocabulary of {vocabulary}, from 0 to "
                f"{vocabulary - 1}; encode the inputs as the network's training data were"
            )


def functionalize(build: Callable[[Rngs], nnx.Module]) -> PureNetwork:
    """Returns the pure form of the network that `build` makes; it computes at the network's own precision."""
    abstract = nnx.eval_shape(lambda: build(AbstractRngs()))
    graph, *shapes = nnx.split(abstract, nnx.Param, ...)
    precision = getattr(abstract, "precision", "highest")
    vocabulary = getattr(getattr(abstract, "embedding", None), "vocabulary", None)

    def init(key: Key[Array, ""]) -> tuple[Tree, Tree]:
        _, params, model_state = nnx.split(build(Rngs(key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

    @at_precision(precision)
    def apply(
        params: Tree,
        model_state: Tree,
        inputs: Tree,
        *,
        training: bool = False,
        axis_name: str | None = None,
        **options: Any,
    ) -> tuple[Tree, Tree]:
        _check_symbols(inputs, vocabulary)
        network = nnx.merge(graph, params, model_state)
        if training:
            flags = {"use_running_average": False, "training": True, "axis_name": axis_name}
            network.set_attributes(**flags, raise_if_not_found=False)
        outputs = network(inputs, **options)
        if not (training and model_state):
            return outputs, model_state
        return outputs, nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.Param)))

    @at_precision(precision)
    def embed(params: Tree, model_state: Tree, inputs: Tree) -> Tree:
        _check_symbols(inputs, vocabulary)
        return nnx.merge(graph, params, model_state).embedding(inputs)

    @at_precision(precision)
    def body(params: Tree, model_state: Tree, vectors: Tree, **options: Any) -> Array:
        return nnx.merge(graph, params, model_state).body(vectors, **options)

    @at_precision(precision)
    def prefill(
        params: Tree, model_state: Tree, inputs: Array, lengths: Array, *, room: int | None = None
    ) -> tuple[Array, Tree]:
        _check_symbols(inputs, vocabulary)
        network = nnx.merge(graph, params, model_state)
        network.set_attributes(room=room, raise_if_not_found=False)
        return network.prefill(inputs, lengths)

    @at_precision(precision)
    def decode(params: Tree, model_state: Tree, inputs: Array, cache: Tree) -> tuple[Array, Tree]:
        _check_symbols(inputs, vocabulary)
        return nnx.merge(graph, params, model_state).decode(inputs, cache)

    variables = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(shapes[0])}
    axes = {name: variable.axes for name, variable in variables.items()}
    fans = {name: metadata["fans"] for name, v in variables.items() if "fans" in (metadata := v.get_metadata())}
    shapes = tuple(map(nnx.to_pure_dict, shapes))
    return PureNetwork(jax.jit(init), shapes, apply, embed, body, axes, fans, prefill, decode, precision, vocabulary)
