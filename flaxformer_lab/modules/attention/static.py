"""Learned weights that do not depend on the input."""

import jax.numpy as jnp

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import ring_buffer
from flaxformer_lab.functional.attention import apply_weights, static_weights
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention.core import Attention, Cache, Heads, KVHeads, Positions, Valid
from flaxformer_lab.modules.attention.properties import CACHES_TOKENS, WEIGHTS_FROM_POSITIONS
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.projection import zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read


@registry.register("attention", "static", **WEIGHTS_FROM_POSITIONS, **CACHES_TOKENS)
class StaticAttention(Attention):
    """Learned weights for each head and pair of positions, the same for every input; without queries and keys."""

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
        weights = static_weights(read(self.scores), tokens, **options)
        return apply_weights(intermediates.hook_point("weights", weights), repeat_kv_heads(value, self._heads))

    def init_cache(self, value: KVHeads, lengths: Positions) -> Cache:
        return ring_buffer.fill(value, lengths, self._slots)

    def decode_step(self, value: KVHeads, cache: Cache, position: Positions):
        cache = ring_buffer.update(cache, value, position)
        held = ring_buffer.slot_positions(position, self._slots)
        rows = jnp.swapaxes(self.scores[...][:, position], 0, 1)
        scores = jnp.take_along_axis(rows, jnp.maximum(held, 0)[:, None], axis=-1)
        return ring_buffer.attend(scores.astype(jnp.float32), cache, held >= 0), cache
