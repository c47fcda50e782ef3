"""Equal weights over the visible tokens."""

import jax.numpy as jnp

from flaxformer_lab import registry
from flaxformer_lab.functional import ring_buffer
from flaxformer_lab.functional.attention import apply_weights, mean_attention, mean_weights
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.modules.attention.core import Attention, Cache, Heads, KVHeads, Positions, Valid
from flaxformer_lab.modules.attention.properties import CACHES_TOKENS, WEIGHTS_FROM_POSITIONS
from flaxformer_lab.modules.intermediates import Intermediates


@registry.register("attention", "mean", **WEIGHTS_FROM_POSITIONS, **CACHES_TOKENS)
class MeanAttention(Attention):
    """Every token receives the mean of the tokens that it may see, without queries and keys."""

    parts = 1

    def mix(self, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates) -> Heads:
        options = {"causal": self._causal, "valid": valid, "window": self._window}
        weights = lambda: mean_weights(*value.shape[:2], **options)  # noqa: E731
        value = repeat_kv_heads(value, self._heads)
        if intermediates.has_hook("weights"):
            shared = intermediates.hook_point("weights", weights())
            return apply_weights(jnp.repeat(shared, self._heads, axis=1), value)
        intermediates.add("weights", weights)
        return mean_attention(value, **options)

    def init_cache(self, value: KVHeads, lengths: Positions) -> Cache:
        if self._window is not None:
            return ring_buffer.fill(value, lengths, self._slots_of_new_cache)
        valid = jnp.arange(value.shape[1])[None] < lengths[:, None]
        return jnp.sum(value.astype(jnp.float32) * valid[:, :, None, None], axis=1, keepdims=True)

    def decode_step(self, value: KVHeads, cache: Cache, position: Positions):
        if self._window is not None:
            cache = ring_buffer.update(cache, value, position)
            slots = cache.shape[1]
            equal = jnp.zeros((value.shape[0], self._heads, slots))
            return ring_buffer.attend(equal, cache, ring_buffer.slot_positions(position, slots) >= 0), cache
        cache = cache + value.astype(jnp.float32)
        mean = cache / (position + 1).astype(jnp.float32)[:, None, None, None]
        return repeat_kv_heads(mean.astype(value.dtype), self._heads), cache
