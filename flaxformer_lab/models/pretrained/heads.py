"""The heads of pretrained models."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.functional.linear import broadcast_parameter
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.embedding import PatchEmbedding
from flaxformer_lab.modules.norm import LayerNorm
from flaxformer_lab.modules.projection import Dense, normal
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read


class MaskedHead(nnx.Module):
    """W2 norm(activation(W1 x + b1)) + b2: BERT's head for masked tokens (Devlin et al. 2019)."""

    def __init__(self, config: TransformerConfig, outputs: int, *, activation: str | None = None, rngs: Rngs):
        self._activation = ACTIVATIONS[activation or config.ffn.activation]
        self.transform = Dense(config.width, config.width, axes=("width", None), bias=True, rngs=rngs)
        self.norm = LayerNorm(config)
        self.output = Dense(config.width, outputs, axes=("width", None), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch outputs"]:
        return self.output(self.norm(self._activation(self.transform(x))))


class PooledHead(nnx.Module):
    """W2 activation(W1 x + b1) + b2 of the first token: BERT's head for whole sequences (Devlin et al. 2019)."""

    def __init__(self, config: TransformerConfig, outputs: int, *, activation: str = "tanh", rngs: Rngs):
        self._activation = ACTIVATIONS[activation]
        self.pooler = Dense(config.width, config.width, axes=("width", None), bias=True, rngs=rngs)
        self.output = Dense(config.width, outputs, axes=("width", None), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch outputs"]:
        return self.output(self._activation(self.pooler(x)))


class EmbeddingHead(nnx.Module):
    """The pooled vector itself, or divided by its length (sentence-transformers)."""

    def __init__(self, *, normalised: bool):
        self._normalised = normalised

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) if self._normalised else x


class DistilledEmbedding(PatchEmbedding):
    """Patches after a class token and a distillation token (Touvron et al. 2021, section 4)."""

    def __init__(self, *arguments: int, rngs: Rngs, **options: bool | str):
        super().__init__(*arguments, rngs=rngs, **options)
        self.distillation_token = normal(rngs, self.class_token.shape, 1, ("width",))

    def __call__(self, images: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch tokens width"]:
        tokens = super().__call__(images)
        second = broadcast_parameter(read(self.distillation_token), tokens[:, :1].shape, tokens.dtype)
        return jnp.concatenate([tokens[:, :1], second, tokens[:, 1:]], axis=1)


class DistilledHead(nnx.Module):
    """The mean of the logits of the first token and of those of the second (Touvron et al. 2021, section 4)."""

    def __init__(self, config: TransformerConfig, outputs: int, *, rngs: Rngs):
        options = {"axes": ("width", None), "bias": True, "rngs": rngs}
        self.classes = Dense(config.width, outputs, **options)
        self.distilled = Dense(config.width, outputs, **options)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch outputs"]:
        return (self.classes(x[:, 0]) + self.distilled(x[:, 1])) / 2
