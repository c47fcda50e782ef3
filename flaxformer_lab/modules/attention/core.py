"""Attention around its formula, from top to bottom: project, rotate, attend, project back; and the same with a cache.

Each kind runs over a whole sequence, and also token by token: `prefill` takes the first tokens and returns a cache of
what the later ones need, `decode` takes one more. Softmax, static and windowed kinds cache past tokens; linear,
lightning and mean attention cache a state of constant size.
"""

import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import ring_buffer
from flaxformer_lab.functional import softmax_attention as softmax
from flaxformer_lab.functional.attention import Heads, apply_weights, softmax_scores
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.functional.heads import HeadLayout
from flaxformer_lab.functional.position import rotary
from flaxformer_lab.functional.softmax import masked_softmax
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention.properties import CACHES_TOKENS, WEIGHTS_FROM_SCORES
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.projection import PROJECTIONS, Dense
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import (
    context_parallel_attention,
    shard_map_attention,
    sharded_over,
    with_logical_constraint,
)

TokenVectors = Float[Array, "batch tokens width"]
Token = Float[Array, "batch 1 width"]
AnyHeads = Float[Array, "batch _ _ head_dim"]  # of queries, keys or values
KVHeads = Float[Array, "batch keys kv_heads head_dim"]
Valid = Bool[Array, "batch keys"]
Scores = Float[Array, "batch heads tokens keys"]
Positions = Int[Array, " batch"]
Cache = Any  # a pytree of arrays; the first axis of each has the same number of rows for every example


class Attention(nnx.Module):
    """Project, mix within heads, merge heads, project back. A subclass defines how a head mixes.

    `parts` counts what one fused map projects from the input: 3 for query, key and value, 1 for the value alone.
    crosses: keys and values come from another sequence, `memory`, by a map of their own (Vaswani et al. 2017, 3.2.3);
    a kind that can do so declares it. Positions are not rotated then: the two sequences have no common origin.
    memory_tokens: how many it has, where that is known. layer: the number of the block, from 0.

    A subclass has mix(*heads, valid, intermediates) -> heads, and to decode with a cache init_cache(*heads, lengths) ->
    cache and decode_step(*heads, cache, position) -> (heads, cache): `mix` token by token, of the one at `position`.
    With `draws = True` its mix takes `keys`, one a batch element, or None outside of training.
    """

    parts = 3
    names = ("q", "k", "v")  # of the last `parts` heads, as hooks know them
    draws = False
    room: int | None = None  # tokens that a new cache has slots for; None: as many as a sequence has
    mixes_axes = False  # whether it knows attention.mix_axes
    masks = False  # whether model.masked hides values of later tokens, though it is not causal

    def __init__(
        self,
        config: TransformerConfig,
        *,
        tokens: int,
        layer: int = 0,
        crosses: bool = False,
        memory_tokens: int | None = None,
        rngs: Rngs,
    ):
        del layer, memory_tokens
        attention = config.attention
        self._heads, self._head_dim = attention.num_heads, config.head_dim
        self._causal, self._window = config.causal and not crosses, None if crosses else attention.window
        self._rotary = config.position == "rotary" and not crosses
        self._rotation = {"base": attention.rotary_base, "features": config.rotary_features}
        self._slots = min(attention.window or tokens, tokens)
        self._activation = ACTIVATIONS[attention.activation]
        # For each head of the key: heads of the query, of the key, of the value. One part alone has no others to share.
        group, names = self._heads // config.num_kv_heads, self.names[-self.parts :]
        counts = tuple(group if name == "q" and self.parts > 1 else 1 for name in names)
        self._layout = HeadLayout(config.num_kv_heads, counts, self._head_dim)
        if crosses:
            self._query_layout = self._layout._replace(counts=counts[:1])
            self._layout = self._layout._replace(counts=counts[1:])
            self.query_projection = _make_projection(config, self._query_layout, rngs)
        self.projection = _make_projection(config, self._layout, rngs)
        merged = self._heads * self._head_dim
        self.output = PROJECTIONS[attention.output](
            merged, config.width, axes=("heads", "width"), bias=config.bias, rngs=rngs, **_structure(config)
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
        **options: Any,
    ) -> TokenVectors:
        """valid: which of the tokens that are attended to, of `memory` if there is one, are not padding.

        options: what the kind's own `mix` takes besides, like `keys`.
        """
        heads = map(intermediates.hook_point, self.names[-self.parts :], self.project_qkv(x, memory))
        mixed = intermediates.hook_point("z", self.mix(*heads, valid=valid, intermediates=intermediates, **options))
        return self.output_projection(x, mixed)

    @property
    def _slots_of_new_cache(self) -> int:
        return self._slots if self.room is None else min(self._slots, self.room)

    def project_qkv(self, x: TokenVectors, memory: Float[Array, "batch memory width"] | None = None) -> list[AnyHeads]:
        """Query, key and value (or the value alone) as heads; key and value from `memory` where there is one."""
        if memory is None:
            return self._project(self.projection, self._layout, x)
        query = self._project(self.query_projection, self._query_layout, x)
        return query + self._project(self.projection, self._layout, memory)

    def _project(self, projection: nnx.Module, layout: HeadLayout, x: TokenVectors) -> list[AnyHeads]:
        fused = with_logical_constraint(self._activation(projection(x)), "batch", "tokens", "heads")
        return [with_logical_constraint(part, "batch", "tokens", "heads", None) for part in layout.split(fused)]

    def apply_rope(self, x: AnyHeads, first: Positions | None = None) -> AnyHeads:
        """Queries or keys, rotated where model.position=rotary; `first`: the position of their first token."""
        return rotary(x, first, **self._rotation) if self._rotary else x

    def output_projection(self, x: TokenVectors, mixed: Heads) -> TokenVectors:
        """Merged heads, normalised and gated where these knobs are on, at the model's width."""
        merged = with_logical_constraint(mixed.reshape(*x.shape[:2], -1), "batch", "tokens", "heads")
        merged = self.norm(merged) if self.norm else merged
        merged = merged * self.gate(x) if self.gate else merged
        return self.output(merged)

    def prefill(self, x: TokenVectors, lengths: Positions) -> tuple[TokenVectors, Cache]:
        """The output of a causal sequence, and the cache after each example's first `lengths` tokens."""
        heads = self.project_qkv(x)
        mixed = self.mix(*heads, valid=None, intermediates=DISABLED)
        return self.output_projection(x, mixed), self.init_cache(*heads, lengths)

    def decode(self, x: Token, cache: Cache, position: Positions) -> tuple[Token, Cache]:
        """The output of the token at `position`, and the cache that includes it."""
        mixed, cache = self.decode_step(*self.project_qkv(x), cache, position)
        return self.output_projection(x, mixed), cache


def _make_projection(config: TransformerConfig, layout: HeadLayout, rngs: Rngs) -> nnx.Module:
    """The map to the heads of a layout."""
    options = {"axes": ("width", "heads"), "bias": config.bias, "rngs": rngs} | _structure(config)
    parts = {"parts": len(layout.counts), "groups": layout.groups}
    projection = PROJECTIONS[config.attention.projection](config.width, layout.features, **options, **parts)
    for parameter in vars(projection).values():
        # Drawn part by part, all queries first; a structured map's kernels [blocks, in, out] keep parts apart.
        if isinstance(parameter, nnx.Param) and parameter.ndim < 3:
            parameter.set_value(layout.fuse(parameter[...]))
    return projection


def _structure(config: TransformerConfig) -> dict[str, int]:
    """What the structured maps of attention need to know."""
    return {"blocks": max(1, config.width // config.attention.block_size), "rank": config.attention.rank}


class Gate(nnx.Module):
    """sigmoid(x W1 W2), of rank head_dim (Qin et al. 2023, TransNormerLLM's gate, in its low-rank form)."""

    def __init__(self, config: TransformerConfig, features: int, *, rngs: Rngs):
        self.down = Dense(config.width, config.head_dim, axes=("width", None), bias=config.bias, rngs=rngs)
        self.up = Dense(config.head_dim, features, axes=(None, "heads"), bias=config.bias, rngs=rngs)

    def __call__(self, x: TokenVectors) -> Float[Array, "batch tokens merged"]:
        return jax.nn.sigmoid(self.up(self.down(x)))


@registry.register("attention", "softmax", odd=True, **WEIGHTS_FROM_SCORES, **CACHES_TOKENS)
class SoftmaxAttention(Attention):
    """Scaled dot-product attention.

    With `residual` it takes the `scores` of the block before, adds its own, and returns (output, scores): He et al.
    2021, RealFormer, eq. 4.
    """

    def __init__(self, config: TransformerConfig, *, crosses: bool = False, **options: Any):
        super().__init__(config, crosses=crosses, **options)
        self.residual = config.attention.residual_scores and not crosses

    def __call__(self, x: TokenVectors, *, scores: Scores | None = None, **options: Any):
        if not self.residual:
            return super().__call__(x, **options)
        kept: list[Scores] = []
        return super().__call__(x, before=scores, kept=kept, **options), kept[0]

    def mix(
        self,
        query: Heads,
        key: KVHeads,
        value: KVHeads,
        *,
        valid: Valid | None,
        intermediates: Intermediates,
        before: Scores | None = None,
        kept: list[Scores] | None = None,
    ) -> Heads:
        """before: scores that are added (RealFormer). kept: takes the sum of both, where the next block needs it."""
        query, key = self.apply_rope(query), self.apply_rope(key)
        masks = {"causal": self._causal, "window": self._window}
        scores = lambda: softmax_scores(query, key) if before is None else softmax_scores(query, key) + before  # noqa: E731
        weights = lambda scores: masked_softmax(scores, valid=valid, **masks)  # noqa: E731
        if kept is not None:
            kept.append(intermediates.hook_point("scores", scores()))
            hooked = intermediates.hook_point("weights", weights(kept[0]))
            return apply_weights(hooked, softmax.repeat_kv_heads(value, self._heads))
        if intermediates.has_hook("scores", "weights"):  # which no fused kernel has
            hooked = weights(intermediates.hook_point("scores", scores()))
            hooked = intermediates.hook_point("weights", hooked)
            return apply_weights(hooked, softmax.repeat_kv_heads(value, self._heads))
        intermediates.add("scores", scores)
        intermediates.add("weights", lambda: weights(scores()))
        if sharded_over("sequence"):
            attend = functools.partial(softmax.context_parallel_attention, **masks)
            return context_parallel_attention(attend, query, key, value, valid=valid)
        attend = functools.partial(softmax.softmax_attention, **masks)
        return shard_map_attention(attend, query, key, value, valid=valid)

    def init_cache(self, query: Heads, key: KVHeads, value: KVHeads, lengths: Positions) -> Cache:
        return [ring_buffer.fill(x, lengths, self._slots_of_new_cache) for x in (self.apply_rope(key), value)]

    def decode_step(self, query: Heads, key: KVHeads, value: KVHeads, cache: Cache, position: Positions):
        query, key = self.apply_rope(query, position), self.apply_rope(key, position)
        keys, values = (ring_buffer.update(*pair, position) for pair in zip(cache, (key, value), strict=True))
        seen = ring_buffer.slot_positions(position, keys.shape[1]) >= 0
        return ring_buffer.attend(ring_buffer.slot_scores(query, keys), values, seen), [keys, values]


def make_attention(
    config: TransformerConfig,
    *,
    tokens: int,
    layer: int = 0,
    crosses: bool = False,
    memory_tokens: int | None = None,
    rngs: Rngs,
) -> Attention | None:
    """The attention that `config.attention` names; None where it is off. The rest is as for `Attention`.

    Raises:
        ConfigError: crosses, and the kind cannot.
    """
    kind = config.attention.kind_of_cross if crosses else config.attention.kind
    if kind == "off":
        return None
    if crosses and registry.ask("attention", kind, "crosses", config) is not True:
        able = " or ".join(registry.declaring("attention", "crosses"))
        raise ConfigError(f"model.attention.kind={kind} cannot attend to another sequence; choose {able}")
    options = {"crosses": True} if crosses else {}
    if crosses and memory_tokens is not None:
        options["memory_tokens"] = memory_tokens
    return registry.lookup("attention", kind).build(config, tokens=tokens, layer=layer, rngs=rngs, **options)
