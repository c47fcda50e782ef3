"""The encoder-decoder Transformer (Vaswani et al. 2017): two Transformers, one of which attends to the other."""

import dataclasses
import math
from typing import TypedDict

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from flaxformer_lab import registry
from flaxformer_lab.functional.dropout import fold_in
from flaxformer_lab.model_config import EncoderDecoderConfig
from flaxformer_lab.models import theory
from flaxformer_lab.models.transformer import Transformer
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
        encoder = dataclasses.replace(config, depth=config.encoder_depth, causal=False)
        self.encoder = Transformer(encoder, grid=grid["source"], rngs=rngs)
        memory_tokens = math.prod(grid["source"])
        self.decoder = Transformer(
            config, grid=grid["target"], cross_attends=True, memory_tokens=memory_tokens, rngs=rngs
        )

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
            memory_valid=valid["source"],
            keys=None if keys is None else fold_in(keys, DECODER),
            intermediates=intermediates.within("decoder"),
        )
