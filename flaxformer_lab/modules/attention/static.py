"""Weights that do not depend on the input, learned or drawn."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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

    def score_table(self) -> Float[Array, "heads tokens tokens"]:
        """What the weights are the softmax of, for each head and pair of positions."""
        return read(self.scores)

    def mix(self, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates) -> Heads:
        tokens, table = value.shape[1], self.score_table()
        if tokens > table.shape[1]:
            raise ConfigError(
                f"a sequence of {tokens} tokens is longer than the {table.shape[1]} that this kind of attention has "
                "weights for; shorten it or train with longer sequences"
            )
        options = {"causal": self._causal, "valid": valid, "window": self._window}
        weights = static_weights(table, tokens, **options)
        return apply_weights(intermediates.hook_point("weights", weights), repeat_kv_heads(value, self._heads))

    def init_cache(self, value: KVHeads, lengths: Positions) -> Cache:
        return ring_buffer.fill(value, lengths, self._slots_of_new_cache)

    def decode_step(self, value: KVHeads, cache: Cache, position: Positions):
        cache = ring_buffer.update(cache, value, position)
        held = ring_buffer.slot_positions(position, cache.shape[1])
        rows = jnp.swapaxes(self.score_table()[:, position], 0, 1)
        scores = jnp.take_along_axis(rows, jnp.maximum(held, 0)[:, None], axis=-1)
        return ring_buffer.attend(scores.astype(jnp.float32), cache, held >= 0), cache


@registry.register("attention", "random", **WEIGHTS_FROM_POSITIONS, **CACHES_TOKENS)
class RandomAttention(StaticAttention):
    """Weights for each head and pair of positions that are drawn and stay as they are (Tay et al. 2021, "fixed").

    The softmax of scores from N(0, 1), which the number of the layer alone determines: they are the same for all seeds.
    """

    def __init__(self, config: TransformerConfig, *, tokens: int, layer: int = 0, rngs: Rngs):
        super(StaticAttention, self).__init__(config, tokens=tokens, layer=layer, rngs=rngs)
        self._layer, self._tokens = layer, tokens

    def score_table(self) -> Float[Array, "heads tokens tokens"]:
        shape = (self._heads, self._tokens, self._tokens)
        return jnp.asarray(np.random.default_rng(self._layer).normal(size=shape), jnp.float32)
