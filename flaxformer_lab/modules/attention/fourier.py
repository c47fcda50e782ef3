"""A fixed Fourier transform over the tokens."""

import math

import jax.numpy as jnp

from flaxformer_lab import registry
from flaxformer_lab.functional.products import einsum
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.functional.structured import fourier_matrix
from flaxformer_lab.modules.attention.core import Attention, Heads, KVHeads, Valid
from flaxformer_lab.modules.intermediates import Intermediates


@registry.register(
    "attention",
    "fourier",
    odd=True,
    affine=True,
    mixes_features=False,
    sees_content=False,
    causal=False,
    windowed=False,
    reach=math.inf,
    crosses=False,
    has_token_weights=False,
    decodes=False,
)
class FourierAttention(Attention):
    """The discrete Fourier transform over tokens, in real numbers, without queries and keys; padding counts as zeros.

    FNet (Lee-Thorp et al. 2022) transforms features in the same step; here tokens and features are mixed apart
    (`projection=fourier` is the other half).
    """

    parts = 1

    def mix(self, value: KVHeads, *, valid: Valid | None, intermediates: Intermediates) -> Heads:
        value = repeat_kv_heads(value, self._heads)
        if valid is not None:
            value = jnp.where(valid[:, :, None, None], value, 0)
        return einsum("qk,bkhd->bqhd", fourier_matrix(value.shape[1], value.dtype), value)
