"""A series attends to itself, shifted by the delays at which it resembles itself (Autoformer)."""

import math

import jax.numpy as jnp

from flaxformer_lab import registry
from flaxformer_lab.functional.autocorrelation import aggregate, correlation, delay_weights, fit_length
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention.core import Attention, Heads, KVHeads, Valid
from flaxformer_lab.modules.intermediates import Intermediates


def _has_choice(config: TransformerConfig, tokens: int | None) -> bool:
    del config
    return tokens is None or tokens > 1  # the weight of a single delay is 1


@registry.register(
    "attention",
    "autocorrelation",
    odd=True,
    affine=lambda config, tokens: not _has_choice(config, tokens),
    mixes_features=_has_choice,  # a delay's weight depends on the features of all heads
    sees_content=_has_choice,
    causal=False,
    windowed=False,
    reach=math.inf,
    crosses=True,
    has_token_weights=False,
    decodes=False,
)
class AutoCorrelation(Attention):
    """Auto-Correlation (Wu et al. 2021). In training all examples of a batch have the same delays, elsewhere their own.

    Padding counts as zeros. `training` and `axis_name` are set by `PureNetwork.apply`.
    """

    def __init__(self, config: TransformerConfig, *, crosses: bool = False, **options):
        super().__init__(config, crosses=crosses, **options)
        self._crosses, self._factor = crosses, config.attention.factor
        self.training, self.axis_name = False, None

    def mix(self, query: Heads, key: KVHeads, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates):
        query, key = self.apply_rope(query), self.apply_rope(key)
        if valid is not None:
            key, value = (jnp.where(valid[:, :, None, None], x, 0) for x in (key, value))
            query = query if self._crosses else jnp.where(valid[:, :, None, None], query, 0)
        key, value = (fit_length(repeat_kv_heads(x, self._heads), query.shape[1]) for x in (key, value))
        shared = {"shared": self.training, "axis_name": self.axis_name}
        weights = delay_weights(correlation(query, key), factor=self._factor, **shared)
        return aggregate(intermediates.hook_point("delay_weights", weights), value)
