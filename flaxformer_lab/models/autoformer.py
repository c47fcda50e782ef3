"""Autoformer (Wu et al. 2021), and with attention in the frequency domain FEDformer (Zhou et al. 2022)."""

import math
from typing import TypedDict

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.dropout import fold_in
from flaxformer_lab.model_config import AutoformerConfig
from flaxformer_lab.models.encoder_decoder import DECODER, Masks, Sequences
from flaxformer_lab.modules.decomposition import DecompositionBlock
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import LayerNorm, SeasonalLayerNorm
from flaxformer_lab.modules.rngs import Rngs


class Decomposed(TypedDict):
    """The target's seasonal part, and the trend that each block of the decoder took away, for `TrendHead` to add."""

    seasonal: Float[Array, "batch target width"]
    trends: Float[Array, "batch target blocks width"]


@registry.register("model", "autoformer", config=AutoformerConfig, causal=False, decodes=False)
class Autoformer(nnx.Module):
    """An encoder and a decoder of blocks that take trends away; positions are not added.

    grid: the tokens of each sequence, as for `encoder_decoder`. Where attention has weights for Fourier modes or
    wavelets, all blocks of the encoder share them, and so do those of the decoder, as in FEDformer's code.
    """

    two_sequences = True

    def __init__(self, config: AutoformerConfig, *, grid: dict[str, tuple[int, ...]], rngs: Rngs):
        source, target = math.prod(grid["source"]), math.prod(grid["target"])
        norm = SeasonalLayerNorm if config.seasonal_norm else LayerNorm

        def blocks(depth: int, **options) -> nnx.List:
            made = [DecompositionBlock(config, layer=layer, rngs=rngs, **options) for layer in range(depth)]
            for block in made[1:]:
                for own, first in (
                    (block.attention, made[0].attention),
                    (block.cross_attention, made[0].cross_attention),
                ):
                    if hasattr(own, "share"):
                        own.share(first)
            return nnx.List(made)

        self.encoder, self.encoder_norm = blocks(config.encoder_depth, tokens=source), norm(config)
        self.decoder = blocks(config.depth, tokens=target, cross_attends=True, memory_tokens=source)
        self.decoder_norm = norm(config)

    def __call__(
        self,
        x: Sequences,
        *,
        valid: Masks | None = None,
        keys: Key[Array, " batch"] | None = None,
        intermediates: Intermediates = DISABLED,
    ) -> Decomposed:
        """Raises ConfigError where tokens are padding."""
        if valid is not None and any(mask is not None for mask in valid.values()):
            raise ConfigError(
                "model.name=autoformer averages over neighbouring tokens, so it takes no padding; "
                "choose model.name=encoder_decoder, or sequences of one length"
            )
        memory, x, trends = x["source"], x["target"], []
        inner = intermediates.within("encoder")
        for number, block in enumerate(self.encoder):
            block_keys = None if keys is None else fold_in(keys, number)
            memory, _ = block(memory, keys=block_keys, intermediates=inner.within(f"blocks.{number}"))
        memory = inner.hook_point("output", self.encoder_norm(memory))
        inner = intermediates.within("decoder")
        keys = None if keys is None else fold_in(keys, DECODER)
        for number, block in enumerate(self.decoder):
            block_keys = None if keys is None else fold_in(keys, number)
            options = {"keys": block_keys, "intermediates": inner.within(f"blocks.{number}")}
            x, trend = block(x, memory=memory, **options)
            trends.append(trend)
        trends = jnp.stack(trends, axis=2) if trends else jnp.zeros((*x.shape[:2], 0, x.shape[2]), x.dtype)
        return {"seasonal": inner.hook_point("output", self.decoder_norm(x)), "trends": trends}
