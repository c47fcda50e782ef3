"""One Transformer block: attention, then feed-forward, each with its norm, dropout and skip connection."""

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from flaxformer_lab.functional.dropout import dropout, fold_in
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention import make_attention
from flaxformer_lab.modules.feedforward import make_feed_forward
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.taps import CLOSED, Taps

Stream = Float[Array, "batch tokens width"]


class Block(nnx.Module):
    """Token mixing, then feature mixing. A part that is off is not there, and neither is its norm."""

    def __init__(self, config: TransformerConfig, *, tokens: int, rngs: nnx.Rngs):
        self._config = config
        self.attention = make_attention(config, tokens=tokens, rngs=rngs)
        self.attention_norm = make_norm(config) if self.attention else None
        self.ffn = make_feed_forward(config, rngs)
        self.ffn_norm = make_norm(config) if self.ffn else None

    def __call__(
        self,
        x: Stream,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        keys: Key[Array, " batch"] | None = None,
        taps: Taps = CLOSED,
    ) -> Stream:
        skip, (attention_keys, ffn_keys) = self._config.skip, _streams(keys)
        if self.attention:
            attend = lambda y: self.attention(y, valid=valid, taps=taps.within("attention"))  # noqa: E731
            x = self._sublayer(x, attend, self.attention_norm, skip.attention, attention_keys)
        if self.ffn:
            x = self._sublayer(x, self.ffn, self.ffn_norm, skip.ffn, ffn_keys)
        taps.add("output", lambda: x)
        return x

    def _sublayer(
        self,
        x: Stream,
        part: Callable[[Stream], Stream],
        norm: nnx.Module | None,
        skip: bool,
        keys: Key[Array, " batch"] | None,
    ) -> Stream:
        """x + part(norm(x)) with the norm before the part (pre), or norm(x + part(x)) with it after (post)."""
        pre = self._config.norm.placement == "pre"
        y = part(norm(x) if norm and pre else x)
        if keys is not None and self._config.dropout:
            y = dropout(y, keys, self._config.dropout)
        y = x + y if skip else y
        return norm(y) if norm and not pre else y


def _streams(keys: Key[Array, " batch"] | None):
    """Keys for attention and for the FFN."""
    return (None, None) if keys is None else (fold_in(keys, 0), fold_in(keys, 1))
