"""Normalisation layers, selected by name."""

from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional import normalization
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.modules.projection import ones, zeros
from flaxformer_lab.modules.sharding import read


class LayerNorm(nnx.Module):
    """(x - mean) / sd * scale + bias over a token's features."""

    def __init__(self, config: ModelConfig, features: int | None = None, axis: str = "width"):
        self._epsilon = config.norm.epsilon
        self.scale = ones((features or config.width,), (axis,))
        self.bias = zeros((features or config.width,), (axis,)) if config.bias else None

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        return normalization.layer_norm(x, read(self.scale), read(self.bias), self._epsilon)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over a token's features."""

    def __init__(self, config: ModelConfig, features: int | None = None, axis: str = "width"):
        self._epsilon = config.norm.epsilon
        self.scale = ones((features or config.width,), (axis,))

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        return normalization.rms_norm(x, read(self.scale), self._epsilon)


class SimpleRMSNorm(nnx.Module):
    """x / rms(x) over a token's features; it owns nothing."""

    def __init__(self, config: ModelConfig, features: int | None = None, axis: str = "width"):
        del features, axis
        self._epsilon = config.norm.epsilon

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        return normalization.simple_rms_norm(x, self._epsilon)


NORMS: dict[str, type[nnx.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "srmsnorm": SimpleRMSNorm}


def make_norm(
    config: ModelConfig, *, kind: str | None = None, features: int | None = None, axis: str = "width"
) -> nnx.Module | None:
    """The norm that `kind`, or else `config.norm.kind`, names; None where it is off.

    features: how many, config.width by default; axis: the name of the axis that they are on.
    """
    kind = kind or config.norm.kind
    return NORMS[kind](config, features, axis) if kind in NORMS else None
