"""One Transformer block: attention, then feed-forward, each with its norm, dropout and skip connection."""

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from flaxformer_lab.functional.dropout import dropout, fold_in
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention import Cache, make_attention
from flaxformer_lab.modules.feedforward import make_feed_forward
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import with_logical_constraint

TokenVectors = Float[Array, "batch tokens width"]


class Block(nnx.Module):
    """Token mixing, then feature mixing. A part that is off is not there, and neither is its norm.

    layer: which block this is, counted from 0. `prefill` and `decode` are as in `modules/attention.py`.
    """

    def __init__(self, config: TransformerConfig, *, tokens: int, layer: int = 0, rngs: Rngs):
        self._config = config
        self.attention = make_attention(config, tokens=tokens, layer=layer, rngs=rngs)
        self.attention_norm = make_norm(config) if self.attention else None
        self.ffn = make_feed_forward(config, rngs)
        self.ffn_norm = make_norm(config) if self.ffn else None

    def __call__(
        self,
        x: TokenVectors,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        keys: Key[Array, " batch"] | None = None,
        intermediates: Intermediates = DISABLED,
    ) -> TokenVectors:
        attend = lambda y: (self.attention(y, valid=valid, intermediates=intermediates.within("attention")), {})  # noqa: E731
        x, _ = self._through(x, attend, keys)
        intermediates.add("output", lambda: x)
        return x

    def prefill(self, x: TokenVectors, lengths: Int[Array, " batch"]) -> tuple[TokenVectors, Cache]:
        return self._through(x, lambda y: self.attention.prefill(y, lengths))

    def decode(
        self, x: Float[Array, "batch 1 width"], cache: Cache, position: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch 1 width"], Cache]:
        return self._through(x, lambda y: self.attention.decode(y, cache, position))

    def _through(
        self,
        x: TokenVectors,
        attend: Callable[[TokenVectors], tuple[TokenVectors, Cache]],
        keys: Key[Array, " batch"] | None = None,
    ) -> tuple[TokenVectors, Cache]:
        """Both parts, with attention done by `attend`; what else that returns is returned, or nothing without it."""
        skip, (attention_keys, ffn_keys), cache = self._config.skip, _streams(keys), {}
        if self.attention:
            y, cache = attend(self._pre_norm(x, self.attention_norm))
            x = self._add_residual(x, y, self.attention_norm, skip.attention, attention_keys)
        if self.ffn:
            y = self.ffn(self._pre_norm(x, self.ffn_norm))
            x = self._add_residual(x, y, self.ffn_norm, skip.ffn, ffn_keys)
        return x, cache

    def _pre_norm(self, x: TokenVectors, norm: nnx.Module | None) -> TokenVectors:
        """What a part is given: norm(x) where the norm comes before (pre)."""
        return norm(x) if norm and self._config.norm.placement == "pre" else x

    def _add_residual(
        self, x: TokenVectors, y: TokenVectors, norm: nnx.Module | None, skip: bool, keys: Key[Array, " batch"] | None
    ) -> TokenVectors:
        """What a part makes of the stream: x + y (pre), or norm(x + y) where the norm comes after (post)."""
        if keys is not None and self._config.dropout:
            y = dropout(y, keys, self._config.dropout)
        y = with_logical_constraint(x + y if skip else y, "batch", "tokens", None)
        return norm(y) if norm and self._config.norm.placement == "post" else y


def _streams(keys: Key[Array, " batch"] | None):
    """Keys for attention and for the FFN."""
    return (None, None) if keys is None else (fold_in(keys, 0), fold_in(keys, 1))
