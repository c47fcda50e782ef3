"""Lightning attention: a decay for each head, and no softmax."""

import functools

from flaxformer_lab import registry
from flaxformer_lab.functional import lightning
from flaxformer_lab.functional.attention import apply_weights
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention.core import Attention, Cache, Heads, KVHeads, Positions, Valid
from flaxformer_lab.modules.attention.properties import CACHES_A_SUM, has_wide_heads
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import shard_map_attention, sharded_over


@registry.register(
    "attention",
    "lightning",
    odd=True,
    affine=False,
    mixes_features=has_wide_heads,  # the weight of a single token is q . k, not 1
    sees_content=True,
    crosses=False,
    has_token_weights=False,
    **CACHES_A_SUM,
)
class LightningAttention(Attention):
    """Lightning attention: no softmax, and for each head and layer a decay that `attention.slopes` selects."""

    def __init__(self, config: TransformerConfig, *, tokens: int, layer: int = 0, rngs: Rngs):
        super().__init__(config, tokens=tokens, layer=layer, rngs=rngs)
        convention = config.attention.slopes
        self._slopes = functools.partial(lightning.make_slopes, convention, self._heads, layer, config.depth)
        self._scale = lightning.score_scale(convention, self._head_dim)

    def mix(self, query: Heads, key: KVHeads, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates):
        query, key, value = self._scale_and_rotate(query, key, value)
        options = {"causal": self._causal, "valid": valid}
        scores = lambda: lightning.lightning_scores(query, key, self._slopes(), **options)  # noqa: E731
        if intermediates.has_hook("scores"):
            return apply_weights(intermediates.hook_point("scores", scores()), value)
        intermediates.add("scores", scores)
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
        """A rotated query and key and a value for each head; the query is scaled, and so are the scores."""
        query, key = self.apply_rope(query * self._scale, first), self.apply_rope(key, first)
        return query, repeat_kv_heads(key, self._heads), repeat_kv_heads(value, self._heads)
