"""Token mixing with parameters: projections around one of the formulas of `functional/`.

Each kind runs over a whole sequence, and also token by token: `prefill` takes the first tokens and returns a cache of
what those that follow need, `decode` takes one more. Softmax, static and windowed kinds keep past tokens; linear,
lightning and mean keep a state whose size does not grow.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import attention as formulas
from flaxformer_lab.functional import lightning, linear_attention, ring_buffer
from flaxformer_lab.functional import softmax_attention as softmax
from flaxformer_lab.functional.attention import Heads
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.functional.heads import fuse_heads, split_heads
from flaxformer_lab.functional.position import rotary
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.projection import PROJECTIONS, Dense, ones, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import (
    context_parallel_attention,
    read,
    shard_map_attention,
    sharded_over,
    with_logical_constraint,
)

TokenVectors = Float[Array, "batch tokens width"]
Token = Float[Array, "batch 1 width"]
AnyHeads = Float[Array, "batch _ _ head_dim"]  # of queries, keys or values
KVHeads = Float[Array, "batch keys kv_heads head_dim"]
Valid = Bool[Array, "batch keys"]
Positions = Int[Array, " batch"]
Cache = Any  # a pytree of arrays, of which each example owns as many rows of the first axis as the next


class Attention(nnx.Module):
    """project, mix within heads, merge heads, project back. A subclass says how a head mixes.

    `parts` counts what is projected from the input in one fused map: 3 for query, key and value, 1 for the value alone.
    crosses: keys and values come from another sequence, `memory`, by a map of their own (Vaswani et al. 2017, 3.2.3);
    a kind that can do so declares it. Positions are not rotated then: the two sequences have no common origin.
    layer: which block this is, counted from 0. init_cache(*heads, lengths) -> cache and decode_step(*heads, cache,
    position) -> (mixed, cache) are `mix` token by token; position is that of the new token.
    """

    parts = 3

    def __init__(self, config: TransformerConfig, *, tokens: int, layer: int = 0, crosses: bool = False, rngs: Rngs):
        del layer
        attention = config.attention
        self._heads, self._kv_heads, self._head_dim = attention.num_heads, config.num_kv_heads, config.head_dim
        self._causal, self._window = config.causal and not crosses, None if crosses else attention.window
        self._rotary = config.position == "rotary" and not crosses
        self._slots = min(attention.window or tokens, tokens)
        self._activation = ACTIVATIONS[attention.activation]
        merged = self._heads * self._head_dim
        # For each head of the key: heads of the query (where there is one), of the key, of the value.
        self._counts = (self._heads // self._kv_heads, 1, 1)[-self.parts :]
        if crosses:
            self.query_projection = PROJECTIONS[attention.projection](
                config.width, merged, axes=("width", "heads"), groups=self._kv_heads, bias=config.bias, rngs=rngs
            )
            self._counts = self._counts[1:]
        projected = sum(self._counts) * self._kv_heads * self._head_dim
        self.projection = PROJECTIONS[attention.projection](
            config.width, projected, axes=("width", "heads"), groups=self._kv_heads, bias=config.bias, rngs=rngs
        )
        self._arrange()
        self.output = PROJECTIONS[attention.output](
            merged, config.width, axes=("heads", "width"), bias=config.bias, rngs=rngs
        )
        self.norm = make_norm(config, kind=attention.norm, features=merged, axis="heads")
        self.gate = Gate(config, merged, rngs=rngs) if attention.gate else None

    def __call__(
        self,
        x: TokenVectors,
        *,
        memory: Float[Array, "batch memory width"] | None = None,
        valid: Valid | None = None,
        intermediates: Intermediates = DISABLED,
    ) -> TokenVectors:
        """valid: which of the tokens that are attended to, of `memory` if there is one, are not padding."""
        return self.output_projection(
            x, self.mix(*self.project_qkv(x, memory), valid=valid, intermediates=intermediates)
        )

    def prefill(self, x: TokenVectors, lengths: Positions) -> tuple[TokenVectors, Cache]:
        """The output of a causal sequence, and the cache after each example's first `lengths` tokens."""
        heads = self.project_qkv(x)
        return self.output_projection(x, self.mix(*heads, valid=None, intermediates=DISABLED)), self.init_cache(
            *heads, lengths
        )

    def decode(self, x: Token, cache: Cache, position: Positions) -> tuple[Token, Cache]:
        """The output of the token at `position`, and the cache that includes it."""
        mixed, cache = self.decode_step(*self.project_qkv(x), cache, position)
        return self.output_projection(x, mixed), cache

    def project_qkv(self, x: TokenVectors, memory: Float[Array, "batch memory width"] | None = None) -> list[AnyHeads]:
        """Query, key and value (or the value alone) as heads; key and value from `memory` where there is one."""
        if memory is None:
            return self._project(self.projection, x, self._counts)
        query = self._project(self.query_projection, x, [self._heads // self._kv_heads])
        return query + self._project(self.projection, memory, self._counts)

    def _project(self, projection: nnx.Module, x: TokenVectors, counts: Sequence[int]) -> list[AnyHeads]:
        fused = with_logical_constraint(self._activation(projection(x)), "batch", "tokens", "heads")
        return [
            with_logical_constraint(part, "batch", "tokens", "heads", None)
            for part in split_heads(fused, counts, self._head_dim)
        ]

    def output_projection(self, x: TokenVectors, mixed: Heads) -> TokenVectors:
        """Merged heads, normalised and gated where these knobs are on, at the model's width."""
        merged = with_logical_constraint(mixed.reshape(*x.shape[:2], -1), "batch", "tokens", "heads")
        merged = self.norm(merged) if self.norm else merged
        merged = merged * self.gate(x) if self.gate else merged
        return self.output(merged)

    def _arrange(self) -> None:
        """Puts what was drawn part by part, all queries first, in the order that `split_heads` wants."""
        ends = [count * self._kv_heads * self._head_dim for count in itertools.accumulate(self._counts[:-1])]
        for parameter in vars(self.projection).values():
            if isinstance(parameter, nnx.Param) and ends:
                parameter.set_value(fuse_heads(jnp.split(parameter[...], ends, axis=-1), self._kv_heads))

    def rope(self, first: Positions | None = None) -> Callable[[Heads], Heads]:
        """What `model.position` = rotary does to queries and keys; `first`: where their first token stands."""
        return functools.partial(rotary, first=first) if self._rotary else linear_attention.identity


class Gate(nnx.Module):
    """sigmoid(x W1 W2), of rank head_dim (Qin et al. 2023, TransNormerLLM's gate, in its low-rank form)."""

    def __init__(self, config: TransformerConfig, features: int, *, rngs: Rngs):
        self.down = Dense(config.width, config.head_dim, axes=("width", None), bias=config.bias, rngs=rngs)
        self.up = Dense(config.head_dim, features, axes=(None, "heads"), bias=config.bias, rngs=rngs)

    def __call__(self, x: TokenVectors) -> Float[Array, "batch tokens merged"]:
        return jax.nn.sigmoid(self.up(self.down(x)))


# ------------------------------------------------------------- what the kinds declare (`registry.PROPERTIES`)


def _chooses(config: TransformerConfig, tokens: int) -> bool:
    """Whether there is more than one token to choose from: the weight of a lone one is 1 whatever its score is."""
    return tokens > 1 and config.attention.window != 1


def _has_wide_heads(config: TransformerConfig, tokens: int | None) -> bool:
    """Whether a head has features to share a score; of channels, a lone one's weight on itself is always 1."""
    del tokens
    return config.head_dim > 1


_BY_SCORES = {
    "affine": lambda config, tokens: not _chooses(config, tokens),
    "mixes_features": lambda config, tokens: _chooses(config, tokens) and _has_wide_heads(config, tokens),
    "sees_content": _chooses,
    "crosses": True,
    "has_token_weights": True,
}
_BY_PLACE = {
    "odd": True,
    "affine": True,
    "mixes_features": False,
    "sees_content": False,
    "crosses": False,
    "has_token_weights": True,
}
_KEEPS_TOKENS = {
    "causal": True,
    "windowed": True,
    "reach": lambda config, tokens: math.inf if config.attention.window is None else config.attention.window - 1,
    "decodes": True,
}
_KEEPS_A_SUM = {"causal": True, "windowed": False, "reach": math.inf, "decodes": True}


# ----------------------------------------------------------------------------------------------------- kinds


@registry.register("attention", "softmax", odd=True, **_BY_SCORES, **_KEEPS_TOKENS)
class SoftmaxAttention(Attention):
    """Scaled dot-product attention."""

    def mix(self, query: Heads, key: KVHeads, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates):
        query, key = map(self.rope(), (query, key))
        options = {"causal": self._causal, "valid": valid, "window": self._window}
        intermediates.add("weights", lambda: formulas.softmax_weights(query, key, **options))
        masks = {"causal": self._causal, "window": self._window}
        if sharded_over("sequence"):
            attend = functools.partial(softmax.context_parallel_attention, **masks)
            return context_parallel_attention(attend, query, key, value, valid=valid)
        attend = functools.partial(softmax.softmax_attention, **masks)
        return shard_map_attention(attend, query, key, value, valid=valid)

    def init_cache(self, query: Heads, key: KVHeads, value: KVHeads, lengths: Positions) -> Cache:
        return [ring_buffer.fill(x, lengths, self._slots) for x in (self.rope()(key), value)]

    def decode_step(self, query: Heads, key: KVHeads, value: KVHeads, cache: Cache, position: Positions):
        query, key = map(self.rope(position), (query, key))
        keys, values = (ring_buffer.update(*pair, position) for pair in zip(cache, (key, value), strict=True))
        seen = ring_buffer.slot_positions(position, self._slots) >= 0
        return ring_buffer.attend(ring_buffer.slot_scores(query, keys), values, seen), [keys, values]


@registry.register("attention", "linear", odd=False, **_BY_SCORES, **_KEEPS_A_SUM)  # its features are positive
class LinearAttention(Attention):
    """Attention with weights that are products of positive features; rotary positions turn the numerator alone."""

    def mix(self, query: Heads, key: KVHeads, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates):
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        options = {"causal": self._causal, "valid": valid, "apply_rope": self.rope()}
        intermediates.add("weights", lambda: linear_attention.linear_weights(query, key, **options))
        return linear_attention.linear_attention(query, key, value, **options)

    def init_cache(self, query: Heads, key: KVHeads, value: KVHeads, lengths: Positions) -> Cache:
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        return linear_attention.init_state(key, value, lengths, apply_rope=self.rope())

    def decode_step(self, query: Heads, key: KVHeads, value: KVHeads, cache: Cache, position: Positions):
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        return linear_attention.decode_step(query, key, value, cache, apply_rope=self.rope(position))


@registry.register(
    "attention",
    "lightning",
    odd=True,
    affine=False,
    mixes_features=_has_wide_heads,  # its weight q . k is not 1 where a token is alone
    sees_content=True,
    crosses=False,
    has_token_weights=False,
    **_KEEPS_A_SUM,
)
class LightningAttention(Attention):
    """Lightning attention: no softmax, and a decay a head that `attention.slopes` gives, layer by layer."""

    def __init__(self, config: TransformerConfig, *, tokens: int, layer: int = 0, rngs: Rngs):
        super().__init__(config, tokens=tokens, layer=layer, rngs=rngs)
        convention = config.attention.slopes
        self._slopes = functools.partial(lightning.make_slopes, convention, self._heads, layer, config.depth)
        self._scale = lightning.score_scale(convention, self._head_dim)

    def mix(self, query: Heads, key: KVHeads, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates):
        query, key, value = self._scale_and_rotate(query, key, value)
        options = {"causal": self._causal, "valid": valid}
        intermediates.add("scores", lambda: lightning.lightning_scores(query, key, self._slopes(), **options))
        if sharded_over("sequence"):  # the blockwise form, which the compiler partitions
            options["implementation"] = "blockwise"
            return lightning.lightning_attention(query, key, value, self._slopes(), **options)
        attend = functools.partial(lightning.lightning_attention, causal=self._causal)
        return shard_map_attention(attend, query, key, value, valid=valid, slopes=self._slopes())

    def init_cache(self, query: Heads, key: KVHeads, value: KVHeads, lengths: Positions) -> Cache:
        _, key, value = self._scale_and_rotate(query, key, value)
        return lightning.init_state(key, value, self._slopes(), lengths)

    def decode_step(self, query: Heads, key: KVHeads, value: KVHeads, cache: Cache, position: Positions):
        token = (x[:, 0] for x in self._scale_and_rotate(query, key, value, position))
        mixed, cache = lightning.decode_step(*token, self._slopes(), cache)
        return mixed[:, None], cache

    def _scale_and_rotate(
        self, query: Heads, key: KVHeads, value: KVHeads, first: Positions | None = None
    ) -> tuple[Heads, ...]:
        """A key and a value for each head, scores scaled, and what rotary positions do."""
        query, key = map(self.rope(first), (query * self._scale, key))
        return query, repeat_kv_heads(key, self._heads), repeat_kv_heads(value, self._heads)


@registry.register(
    "attention",
    "channel",
    odd=True,
    affine=lambda config, tokens: not _has_wide_heads(config, tokens),
    mixes_features=_has_wide_heads,
    sees_content=_has_wide_heads,
    causal=False,
    windowed=False,
    reach=lambda config, tokens: math.inf if _has_wide_heads(config, tokens) else 0,
    crosses=False,
    has_token_weights=False,
    decodes=False,
)
class ChannelAttention(Attention):
    """Cross-covariance attention between the features of a head, with a learned temperature a head.

    It sees all tokens at once, so it has no token by token.
    """

    def __init__(self, config: TransformerConfig, *, tokens: int, layer: int = 0, rngs: Rngs):
        super().__init__(config, tokens=tokens, layer=layer, rngs=rngs)
        self.temperature = ones((self._heads,), ("heads",))

    def mix(self, query: Heads, key: KVHeads, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates):
        query, key = map(self.rope(), (query, key))
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        temperature = read(self.temperature)
        intermediates.add("channel_weights", lambda: formulas.channel_weights(query, key, temperature, valid=valid))
        return formulas.channel_attention(query, key, value, temperature, valid=valid)


@registry.register("attention", "mean", **_BY_PLACE, **_KEEPS_TOKENS)
class MeanAttention(Attention):
    """Every token receives the mean of the tokens that it may see; there are no queries and keys."""

    parts = 1

    def mix(self, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates) -> Heads:
        options = {"causal": self._causal, "valid": valid, "window": self._window}
        intermediates.add("weights", lambda: formulas.mean_weights(*value.shape[:2], **options))
        return formulas.mean_attention(repeat_kv_heads(value, self._heads), **options)

    def init_cache(self, value: KVHeads, lengths: Positions) -> Cache:
        if self._window is not None:
            return ring_buffer.fill(value, lengths, self._slots)
        read = jnp.arange(value.shape[1])[None] < lengths[:, None]
        return jnp.sum(value.astype(jnp.float32) * read[:, :, None, None], axis=1, keepdims=True)

    def decode_step(self, value: KVHeads, cache: Cache, position: Positions):
        if self._window is not None:
            cache = ring_buffer.update(cache, value, position)
            equal = jnp.zeros((len(value), self._heads, self._slots))
            return ring_buffer.attend(equal, cache, ring_buffer.slot_positions(position, self._slots) >= 0), cache
        cache = cache + value.astype(jnp.float32)
        mean = cache / (position + 1).astype(jnp.float32)[:, None, None, None]
        return repeat_kv_heads(mean.astype(value.dtype), self._heads), cache


@registry.register("attention", "static", **_BY_PLACE, **_KEEPS_TOKENS)
class StaticAttention(Attention):
    """Learned weights a head and pair of positions, the same for every input; there are no queries and keys."""

    parts = 1

    def __init__(self, config: TransformerConfig, *, tokens: int, layer: int = 0, rngs: Rngs):
        super().__init__(config, tokens=tokens, layer=layer, rngs=rngs)
        self.scores = zeros((self._heads, tokens, tokens), ("heads", None, None))

    def mix(self, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates) -> Heads:
        tokens, most = value.shape[1], self.scores.shape[1]
        if tokens > most:
            raise ConfigError(
                f"a sequence of {tokens} tokens is longer than the {most} that model.attention.kind=static has weights "
                "for; shorten it or train with longer sequences"
            )
        options = {"causal": self._causal, "valid": valid, "window": self._window}
        weights = formulas.static_weights(read(self.scores), tokens, **options)
        intermediates.add("weights", lambda: weights)
        return formulas.apply_weights(weights, repeat_kv_heads(value, self._heads))

    def init_cache(self, value: KVHeads, lengths: Positions) -> Cache:
        return ring_buffer.fill(value, lengths, self._slots)

    def decode_step(self, value: KVHeads, cache: Cache, position: Positions):
        cache = ring_buffer.update(cache, value, position)
        held = ring_buffer.slot_positions(position, self._slots)
        rows = jnp.swapaxes(self.scores[...][:, position], 0, 1)
        scores = jnp.take_along_axis(rows, jnp.maximum(held, 0)[:, None], axis=-1)
        return ring_buffer.attend(scores.astype(jnp.float32), cache, held >= 0), cache


def make_attention(
    config: TransformerConfig, *, tokens: int, layer: int = 0, crosses: bool = False, rngs: Rngs
) -> Attention | None:
    """The attention that `config.attention.kind` names; None where it is off. The rest is as for `Attention`.

    Raises:
        ConfigError: crosses, and the kind cannot.
    """
    kind = config.attention.kind
    if kind == "off":
        return None
    if crosses and registry.ask("attention", kind, "crosses", config) is not True:
        able = " or ".join(registry.declaring("attention", "crosses"))
        raise ConfigError(f"model.attention.kind={kind} cannot attend to another sequence; choose {able}")
    options = {"crosses": True} if crosses else {}
    return registry.lookup("attention", kind).build(config, tokens=tokens, layer=layer, rngs=rngs, **options)
