"""One Transformer block: attention, then feed-forward, each with its norm, dropout and skip connection."""

import functools
from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from flaxformer_lab.functional.dropout import dropout, fold_in
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention import Cache, make_attention
from flaxformer_lab.modules.feedforward import FeedForward, make_feed_forward
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import with_logical_constraint

TokenVectors = Float[Array, "batch tokens width"]
Valid = Bool[Array, "batch tokens"]
Keys = Key[Array, " batch"]
Scores = Float[Array, "batch heads tokens tokens"]


class Block(nnx.Module):
    """Token mixing, then feature mixing. A part that is off is not there, and neither is its norm.

    layer: which block this is, counted from 0. cross_attends: attention to another sequence, `memory` (of
    memory_tokens), comes between the two. `prefill` and `decode` are as in `modules/attention/core.py`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        tokens: int,
        layer: int = 0,
        cross_attends: bool = False,
        memory_tokens: int | None = None,
        rngs: Rngs,
    ):
        self._config = config
        self.attention = make_attention(config, tokens=tokens, layer=layer, rngs=rngs)
        self.attention_norm = make_norm(config) if self.attention else None
        options = {"tokens": tokens, "layer": layer, "memory_tokens": memory_tokens, "rngs": rngs}
        self.cross_attention = make_attention(config, crosses=True, **options) if cross_attends else None
        self.cross_attention_norm = make_norm(config) if self.cross_attention else None
        self.ffn = make_feed_forward(config, rngs)
        self.ffn_norm = make_norm(config) if self.ffn else None

    def __call__(
        self,
        x: TokenVectors,
        *,
        valid: Valid | None = None,
        memory: Float[Array, "batch memory width"] | None = None,
        memory_valid: Bool[Array, "batch memory"] | None = None,
        keys: Keys | None = None,
        scores: Scores | None = None,
        intermediates: Intermediates = DISABLED,
    ) -> TokenVectors | tuple[TokenVectors, Scores]:
        """valid, memory_valid: which tokens of x and of memory are not padding; None: all of them.

        scores: with attention.residual_scores, those of the block before; then the new ones are returned too.
        """
        skip, keys_of = self._config.skip, lambda part: None if keys is None else fold_in(keys, part)
        x = block_input = intermediates.hook_point("input", x)
        if self.attention:
            inner = intermediates.within("attention")
            attend = functools.partial(self.attention, valid=valid, intermediates=inner)
            attend = with_keys(attend, keys_of(3))
            if getattr(self.attention, "residual", False):
                attend = _keep_scores(functools.partial(attend, scores=scores), kept := [])
            x = self._residual(x, attend, self.attention_norm, skip.attention, valid, keys_of(0), inner)
            x = intermediates.hook_point("after_attention", x)
        if self.cross_attention:
            inner = intermediates.within("cross_attention")
            attend = functools.partial(self.cross_attention, memory=memory, valid=memory_valid, intermediates=inner)
            attend = with_keys(attend, keys_of(4))
            x = self._residual(x, attend, self.cross_attention_norm, skip.attention, valid, keys_of(2), inner)
            x = intermediates.hook_point("after_cross_attention", x)
        if self.ffn:
            inner, ffn = intermediates.within("ffn"), self.ffn
            ffn = functools.partial(ffn, intermediates=inner) if isinstance(ffn, FeedForward) else ffn
            read = block_input if self._config.parallel else None
            x = self._residual(x, ffn, self.ffn_norm, skip.ffn, valid, keys_of(1), inner, read)
        x = intermediates.hook_point("output", x)
        return (x, kept[0]) if getattr(self.attention, "residual", False) else x

    def prefill(self, x: TokenVectors, lengths: Int[Array, " batch"]) -> tuple[TokenVectors, Cache]:
        return self._with_cache(x, lambda y: self.attention.prefill(y, lengths))

    def decode(
        self, x: Float[Array, "batch 1 width"], cache: Cache, position: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch 1 width"], Cache]:
        return self._with_cache(x, lambda y: self.attention.decode(y, cache, position))

    def _with_cache(
        self, x: TokenVectors, attend: Callable[[TokenVectors], tuple[TokenVectors, Cache]]
    ) -> tuple[TokenVectors, Cache]:
        """Attention and FFN; returns the cache of the attention too, an empty one where it is off."""
        skip, caches, block_input = self._config.skip, [{}], x
        if self.attention:

            def attend_and_keep(y: TokenVectors) -> TokenVectors:
                y, caches[0] = attend(y)
                return y

            x = self._residual(x, attend_and_keep, self.attention_norm, skip.attention)
        if self.ffn:
            read = block_input if self._config.parallel else None
            x = self._residual(x, self.ffn, self.ffn_norm, skip.ffn, read=read)
        return x, caches[0]

    def _residual(
        self,
        x: TokenVectors,
        part: Callable[[TokenVectors], TokenVectors],
        norm: nnx.Module | None,
        skip: bool,
        valid: Valid | None = None,
        keys: Keys | None = None,
        intermediates: Intermediates = DISABLED,
        read: TokenVectors | None = None,
    ) -> TokenVectors:
        """x + part(norm(x)) where the norm comes before (pre), or norm(x + part(x)) where it comes after (post).

        read: what the part takes instead of x.
        """
        pre, read = self._config.norm.placement == "pre", x if read is None else read
        y = intermediates.hook_point("input", norm(read, valid) if norm and pre else read)
        y = intermediates.hook_point("output", part(y))
        if keys is not None and self._config.dropout:
            y = dropout(y, keys, self._config.dropout)
        y = with_logical_constraint(x + y if skip else y, "batch", "tokens", None)
        return norm(y, valid) if norm and not pre else y


def _keep_scores(
    attend: Callable[[TokenVectors], tuple[TokenVectors, Scores]], kept: list[Scores]
) -> Callable[[TokenVectors], TokenVectors]:
    """Attention that puts its scores aside."""

    def call(x: TokenVectors) -> TokenVectors:
        x, scores = attend(x)
        kept.append(scores)
        return x

    return call


def with_keys(attend: functools.partial, keys: Keys | None) -> functools.partial:
    """Attention that is also given keys, where its kind draws."""
    return functools.partial(attend, keys=keys) if getattr(attend.func, "draws", False) else attend
