"""Normalisation layers, selected by name."""

from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional import normalization
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.modules.projection import ones, read, zeros


class LayerNorm(nnx.Module):
    """(x - mean) / sd * scale + bias over a token's features."""

    def __init__(self, config: ModelConfig):
        self._epsilon = config.norm.epsilon
        self.scale = ones((config.width,))
        self.bias = zeros((config.width,)) if config.bias else None

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        return normalization.layer_norm(x, self.scale[...], read(self.bias), self._epsilon)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over a token's features."""

    def __init__(self, config: ModelConfig):
        self._epsilon = config.norm.epsilon
        self.scale = ones((config.width,))

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        return normalization.rms_norm(x, self.scale[...], self._epsilon)


def make_norm(config: ModelConfig) -> nnx.Module | None:
    """The norm that `config.norm.kind` names; None where it is off."""
    kinds = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
    return kinds[config.norm.kind](config) if config.norm.kind in kinds else None
