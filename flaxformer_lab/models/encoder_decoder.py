"""The encoder-decoder Transformer (Vaswani et al. 2017): two Transformers, one of which attends to the other."""

import dataclasses
from typing import TypedDict

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from flaxformer_lab import registry
from flaxformer_lab.functional.dropout import fold_in
from flaxformer_lab.model_config import EncoderDecoderConfig, TransformerConfig
from flaxformer_lab.models import theory
from flaxformer_lab.models.transformer import TokenVectors, Transformer, Valid
from flaxformer_lab.modules.distilling import Distilling, pool_valid
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.rngs import Rngs

DECODER = 2**30  # the sub-stream of the decoder's dropout keys; the encoder's blocks are numbered from 0


class Sequences(TypedDict):
    """Token vectors of the source, which the encoder reads, and of the target."""

    source: Float[Array, "batch source width"]
    target: Float[Array, "batch target width"]


class Masks(TypedDict):
    """Which tokens of each are not padding."""

    source: Bool[Array, "batch source"]
    target: Bool[Array, "batch target"]


class DistillingTransformer(Transformer):
    """A Transformer whose tokens become half as many between its blocks (Zhou et al. 2021, eq. 5)."""

    def __init__(self, config: TransformerConfig, *, rngs: Rngs, **options):
        super().__init__(config, rngs=rngs, **options)
        self.distilling = nnx.List([Distilling(config, rngs) for _ in range(config.depth - 1)])

    def tokens_at(self, layer: int) -> int:
        """How many tokens a block has; after the last there is no pooling."""
        tokens = self._tokens
        for _ in range(min(layer, self._config.depth - 1)):
            tokens = (tokens + 1) // 2
        return tokens

    def between_blocks(
        self, number: int, x: TokenVectors, valid: Valid | None
    ) -> tuple[Float[Array, "batch fewer width"], Bool[Array, "batch fewer"] | None]:
        """Pooled tokens, but for the last block."""
        return self.distilling[number](x, valid) if number < len(self.distilling) else (x, valid)

    def valid_of_output(self, valid: Valid | None) -> Bool[Array, "batch fewer"] | None:
        """Which of the output's tokens have seen a valid one."""
        for _ in self.distilling:
            valid = valid if valid is None else pool_valid(valid)
        return valid


@registry.register(
    "model",
    "encoder_decoder",
    config=EncoderDecoderConfig,
    causal=theory.config_causal,
    decodes=False,
)
class EncoderDecoder(nnx.Module):
    """The target's token vectors in, after attention to what the encoder makes of the source.

    grid: the tokens of each sequence, like {"source": (96,), "target": (24,)}. The encoder is never causal.
    """

    two_sequences = True

    def __init__(self, config: EncoderDecoderConfig, *, grid: dict[str, tuple[int, ...]], rngs: Rngs):
        attention = dataclasses.replace(config.attention, mix_axes=False)
        encoder = dataclasses.replace(config, depth=config.encoder_depth, causal=False, attention=attention)
        decoder = dataclasses.replace(config, causal=config.causal or config.masked)
        if not config.self_attention:
            kinds = {"kind": "off", "cross_kind": config.attention.kind_of_cross}
            decoder = dataclasses.replace(decoder, attention=dataclasses.replace(config.attention, **kinds))
        self._distils = config.distil
        kind = DistillingTransformer if config.distil else Transformer
        self.encoder = kind(encoder, grid=grid["source"], rngs=rngs)
        options = {"cross_attends": True, "memory_tokens": self.encoder.tokens_at(config.encoder_depth), "rngs": rngs}
        self.decoder = Transformer(decoder, grid=grid["target"], **options)

    def __call__(
        self,
        x: Sequences,
        *,
        valid: Masks | None = None,
        keys: Key[Array, " batch"] | None = None,
        intermediates: Intermediates = DISABLED,
    ) -> Float[Array, "batch target width"]:
        valid = valid or {"source": None, "target": None}
        memory = self.encoder(
            x["source"], valid=valid["source"], keys=keys, intermediates=intermediates.within("encoder")
        )
        return self.decoder(
            x["target"],
            valid=valid["target"],
            memory=memory,
            memory_valid=self.encoder.valid_of_output(valid["source"]) if self._distils else valid["source"],
            keys=None if keys is None else fold_in(keys, DECODER),
            intermediates=intermediates.within("decoder"),
        )
