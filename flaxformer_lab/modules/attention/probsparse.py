"""Softmax attention of the queries that single out some keys; the others take the mean (Informer)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from flaxformer_lab import registry
from flaxformer_lab.functional.attention import apply_weights
from flaxformer_lab.functional.probsparse import probsparse_attention, probsparse_weights, sample_keys
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention.core import Attention, Heads, KVHeads, Valid
from flaxformer_lab.modules.attention.properties import WEIGHTS_FROM_SCORES
from flaxformer_lab.modules.intermediates import Intermediates


def _mixes_features(config: TransformerConfig, tokens: int | None) -> bool:
    return config.attention.mix_axes or WEIGHTS_FROM_SCORES["mixes_features"](config, tokens)


def _has_token_weights(config: TransformerConfig, tokens: int | None) -> bool:
    del tokens
    return not config.attention.mix_axes


@registry.register(
    "attention",
    "probsparse",
    odd=True,
    **WEIGHTS_FROM_SCORES | {"mixes_features": _mixes_features, "has_token_weights": _has_token_weights},
    causal=False,  # all keys decide which queries attend, later ones too; masks hide only their values
    windowed=False,
    reach=math.inf,
    decodes=False,
)
class ProbSparseAttention(Attention):
    """ProbSparse attention (Zhou et al. 2021). The sampled keys are drawn for each step, and once for evaluation.

    With config.causal, as Informer's decoder has it, weights and sums are masked.
    """

    draws = mixes_axes = masks = True

    def __init__(self, config: TransformerConfig, *, crosses: bool = False, layer: int = 0, **options):
        super().__init__(config, crosses=crosses, layer=layer, **options)
        self._crosses, self._layer = crosses, layer
        self._factor, self._mix_axes = config.attention.factor, config.attention.mix_axes
        self.axis_name = None  # set by `PureNetwork.apply`

    def mix(
        self,
        query: Heads,
        key: KVHeads,
        value: KVHeads,
        *,
        valid: Valid | None,
        keys: Key[Array, " batch"] | None = None,
        intermediates: Intermediates,
    ) -> Heads:
        query, key = self.apply_rope(query), self.apply_rope(key)
        key, value = (repeat_kv_heads(x, self._heads) for x in (key, value))
        sampled = self.sample(keys, query.shape[1], key.shape[1])
        options = {"factor": self._factor, "causal": self._causal, "valid": valid}
        options["query_valid"] = None if self._crosses else valid
        weights = lambda: probsparse_weights(query, key, sampled, **options)  # noqa: E731
        if intermediates.has_hook("weights"):
            mixed = apply_weights(intermediates.hook_point("weights", weights()), value)
        else:
            intermediates.add("weights", weights)
            mixed = probsparse_attention(query, key, value, sampled, **options)
        return jnp.swapaxes(mixed, 1, 2).reshape(mixed.shape) if self._mix_axes else mixed

    def sample(self, keys: Key[Array, " batch"] | None, queries: int, tokens: int) -> Int[Array, "queries sampled"]:
        """The keys that each query meets, the same for the whole batch, on all devices of a mapped axis."""
        if keys is None:
            return sample_keys(jax.random.fold_in(jax.random.key(0), self._layer), queries, tokens, self._factor)
        first = jax.random.key_data(keys[0])
        if self.axis_name is not None:
            first = jax.lax.all_gather(first, self.axis_name)[0]
        return sample_keys(jax.random.wrap_key_data(first), queries, tokens, self._factor)
