"""Attention between the features of a head instead of between tokens."""

import math

from flaxformer_lab import registry
from flaxformer_lab.functional.attention import apply_channel_weights, channel_weights
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention.core import Attention, Heads, KVHeads, Valid
from flaxformer_lab.modules.attention.properties import has_wide_heads
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.projection import ones
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read


@registry.register(
    "attention",
    "channel",
    odd=True,
    affine=lambda config, tokens: not has_wide_heads(config, tokens),
    mixes_features=has_wide_heads,
    sees_content=has_wide_heads,
    causal=False,
    windowed=False,
    reach=lambda config, tokens: math.inf if has_wide_heads(config, tokens) else 0,
    crosses=False,
    has_token_weights=False,
    decodes=False,
)
class ChannelAttention(Attention):
    """Cross-covariance attention between the features of a head, with a learned temperature for each head.

    It sees all tokens at once, so it cannot decode token by token.
    """

    def __init__(self, config: TransformerConfig, *, tokens: int, layer: int = 0, rngs: Rngs):
        super().__init__(config, tokens=tokens, layer=layer, rngs=rngs)
        self.temperature = ones((self._heads,), ("heads",))

    def mix(self, query: Heads, key: KVHeads, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates):
        query, key = self.apply_rope(query), self.apply_rope(key)
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        temperature = read(self.temperature)
        weights = channel_weights(query, key, temperature, valid=valid)
        return apply_channel_weights(intermediates.hook_point("channel_weights", weights), value)
