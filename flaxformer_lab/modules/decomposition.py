"""Blocks that take the trend away from a series (Wu et al. 2021, Autoformer)."""

import dataclasses
import functools
from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Float, Key

from flaxformer_lab.functional.decomposition import decompose_series
from flaxformer_lab.functional.dropout import dropout, fold_in
from flaxformer_lab.model_config import AutoformerConfig
from flaxformer_lab.modules.attention import make_attention
from flaxformer_lab.modules.block import with_keys
from flaxformer_lab.modules.feedforward import FeedForward, make_feed_forward
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.projection import normal, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read, with_logical_constraint

TokenVectors = Float[Array, "batch tokens width"]


class Decomposition(nnx.Module):
    """(seasonal, trend) of a series; the averages of several sizes are mixed by a learned function of each value."""

    def __init__(self, kernel_sizes: tuple[int, ...], rngs: Rngs):
        self._kernel_sizes, several = kernel_sizes, len(kernel_sizes) > 1
        self.weight = normal(rngs, (len(kernel_sizes),), 1, (None,)) if several else None
        self.bias = zeros((len(kernel_sizes),), (None,)) if several else None

    def __call__(self, x: Float[Array, "batch tokens features"]) -> tuple[Array, Array]:
        return decompose_series(x, self._kernel_sizes, read(self.weight), read(self.bias))


class DecompositionBlock(nnx.Module):
    """Attention, attention to `memory` where it cross_attends, and FFN; after each, the trend leaves the stream.

    The FFN has no biases, as in the authors' code. There is no norm.
    """

    def __init__(
        self,
        config: AutoformerConfig,
        *,
        tokens: int,
        layer: int = 0,
        cross_attends: bool = False,
        memory_tokens: int | None = None,
        rngs: Rngs,
    ):
        self._config = config
        options = {"tokens": tokens, "layer": layer, "rngs": rngs}
        self.attention = make_attention(config, **options)
        self.cross_attention = (
            make_attention(config, crosses=True, memory_tokens=memory_tokens, **options) if cross_attends else None
        )
        self.ffn = make_feed_forward(dataclasses.replace(config, bias=False), rngs)
        parts = sum(part is not None for part in (self.attention, self.cross_attention, self.ffn))
        self.decompositions = nnx.List([Decomposition(config.moving_average, rngs) for _ in range(parts)])

    def __call__(
        self,
        x: TokenVectors,
        *,
        memory: Float[Array, "batch memory width"] | None = None,
        keys: Key[Array, " batch"] | None = None,
        intermediates: Intermediates = DISABLED,
    ) -> tuple[TokenVectors, TokenVectors]:
        """The seasonal part, and the sum of the trends that left it."""
        skip, trends = self._config.skip, []
        decompositions = iter(self.decompositions)

        def keys_of(part: int) -> Key[Array, " batch"] | None:
            return None if keys is None else fold_in(keys, part)

        def apply(x: TokenVectors, name: str, part: Callable[..., TokenVectors], skips: bool, number: int):
            inner = intermediates.within(name)
            y = inner.hook_point("output", part(inner.hook_point("input", x), intermediates=inner))
            if keys is not None and self._config.dropout:
                y = dropout(y, keys_of(number), self._config.dropout)
            x, trend = next(decompositions)(with_logical_constraint(x + y if skips else y, "batch", "tokens", None))
            trends.append(trend)
            return x

        x = intermediates.hook_point("input", x)
        if self.attention:
            attend = with_keys(functools.partial(self.attention), keys_of(3))
            x = apply(x, "attention", attend, skip.attention, 0)
        if self.cross_attention:
            attend = with_keys(functools.partial(self.cross_attention, memory=memory), keys_of(4))
            x = apply(x, "cross_attention", attend, skip.attention, 2)
        if self.ffn:
            ffn = self.ffn if isinstance(self.ffn, FeedForward) else lambda x, intermediates: self.ffn(x)
            x = apply(x, "ffn", ffn, skip.ffn, 1)
        return intermediates.hook_point("output", x), intermediates.hook_point("trend", sum(trends))
