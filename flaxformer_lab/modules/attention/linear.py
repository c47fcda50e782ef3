"""Linear attention: weights that are products of positive features."""

import functools

from flaxformer_lab import registry
from flaxformer_lab.functional import linear_attention
from flaxformer_lab.functional.attention import apply_weights
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention.core import Attention, Cache, Heads, KVHeads, Positions, Valid
from flaxformer_lab.modules.attention.properties import CACHES_A_SUM, WEIGHTS_FROM_SCORES
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.sharding import shard_map_attention, sharded_over


def _has_token_weights(config: TransformerConfig, tokens: int | None) -> bool:
    """A rotated numerator over a plain denominator: such weights do not sum to 1."""
    del tokens
    return config.position != "rotary"


@registry.register(
    "attention",
    "linear",
    odd=False,  # positive features are not odd
    **WEIGHTS_FROM_SCORES | {"has_token_weights": _has_token_weights},
    **CACHES_A_SUM,
)
class LinearAttention(Attention):
    """Attention with weights that are products of positive features; rotary positions rotate the numerator alone."""

    def mix(self, query: Heads, key: KVHeads, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates):
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        options = {"causal": self._causal, "valid": valid, "apply_rope": self.apply_rope}
        weights = lambda: linear_attention.linear_weights(query, key, **options)  # noqa: E731
        if intermediates.has_hook("weights"):
            return apply_weights(intermediates.hook_point("weights", weights()), value)
        intermediates.add("weights", weights)
        if sharded_over("sequence"):  # the blockwise form, which the compiler partitions
            options["implementation"] = "blockwise"
            return linear_attention.linear_attention(query, key, value, **options)
        attend = functools.partial(linear_attention.linear_attention, causal=self._causal, apply_rope=self.apply_rope)
        return shard_map_attention(attend, query, key, value, valid=valid)

    def init_cache(self, query: Heads, key: KVHeads, value: KVHeads, lengths: Positions) -> Cache:
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        return linear_attention.init_state(key, value, lengths, apply_rope=self.apply_rope)

    def decode_step(self, query: Heads, key: KVHeads, value: KVHeads, cache: Cache, position: Positions):
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        apply_rope = functools.partial(self.apply_rope, first=position)
        return linear_attention.decode_step(query, key, value, cache, apply_rope=apply_rope)
