"""Normalisation layers, selected by name."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flaxformer_lab.functional import normalization
from flaxformer_lab.model_config import ModelConfig, NormConfig
from flaxformer_lab.modules.projection import ones, zeros
from flaxformer_lab.modules.sharding import read

Features = Float[Array, "*batch features"]
Valid = Bool[Array, "*batch"]  # which tokens are not padding; only BatchNorm asks
BATCH_MOMENTUM = 0.9  # of the running averages


@dataclass(frozen=True)
class NormKnobs:
    """What a norm reads of a model's config, also where the model has no norm itself."""

    bias: bool
    norm: Any

    @classmethod
    def of(cls, config: ModelConfig) -> "NormKnobs":
        return cls(config.bias, getattr(config, "norm", NormConfig()))


class LayerNorm(nnx.Module):
    """(x - mean) / sd * scale + bias over a token's features."""

    def __init__(self, config: ModelConfig | NormKnobs, features: int | None = None, axis: str = "width"):
        self._epsilon = config.norm.epsilon
        self.scale = ones((features or config.width,), (axis,))
        self.bias = zeros((features or config.width,), (axis,)) if config.bias else None

    def __call__(self, x: Features, valid: Valid | None = None) -> Features:
        return normalization.layer_norm(x, read(self.scale), read(self.bias), self._epsilon)


class SeasonalLayerNorm(LayerNorm):
    """LayerNorm less its mean over the tokens, so that no trend is left (Wu et al. 2021, in the authors' code)."""

    def __call__(self, x: Float[Array, "batch tokens features"], valid: Valid | None = None) -> Features:
        y = super().__call__(x.astype(jnp.float32))
        weights = jnp.ones(y.shape[:2]) if valid is None else valid.astype(jnp.float32)
        total = jnp.sum(y * weights[:, :, None], axis=1, keepdims=True)
        return (y - total / jnp.maximum(jnp.sum(weights, axis=1), 1)[:, None, None]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over a token's features."""

    def __init__(self, config: ModelConfig | NormKnobs, features: int | None = None, axis: str = "width"):
        self._epsilon = config.norm.epsilon
        self.scale = ones((features or config.width,), (axis,))

    def __call__(self, x: Features, valid: Valid | None = None) -> Features:
        return normalization.rms_norm(x, read(self.scale), self._epsilon)


class SimpleRMSNorm(nnx.Module):
    """x / rms(x) over a token's features, without parameters."""

    def __init__(self, config: ModelConfig | NormKnobs, features: int | None = None, axis: str = "width"):
        del features, axis
        self._epsilon = config.norm.epsilon

    def __call__(self, x: Features, valid: Valid | None = None) -> Features:
        return normalization.simple_rms_norm(x, self._epsilon)


class BatchNorm(nnx.Module):
    """Each feature is normalised over all valid tokens of the batch (Ioffe and Szegedy 2015).

    Training takes the batch's statistics, of all devices together, and moves running averages towards them; elsewhere
    these averages are used. `use_running_average` and `axis_name` are set by `PureNetwork.apply`.
    """

    def __init__(self, config: ModelConfig | NormKnobs, features: int | None = None, axis: str = "width"):
        features = features or config.width
        self._epsilon = config.norm.epsilon
        self.scale = ones((features,), (axis,))
        self.bias = zeros((features,), (axis,)) if config.bias else None
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.variance = nnx.BatchStat(jnp.ones((features,), jnp.float32))
        self.use_running_average, self.axis_name = True, None

    def __call__(self, x: Features, valid: Valid | None = None) -> Features:
        if self.use_running_average:
            mean, variance = self.mean[...], self.variance[...]
        else:
            mean, variance, count = normalization.batch_statistics(x, valid, axis_name=self.axis_name)
            # The average is of the unbiased estimate (algorithm 2 of the paper).
            unbiased = variance * count / jnp.maximum(count - 1, 1)
            for average, new in ((self.mean, mean), (self.variance, unbiased)):
                new = jax.lax.stop_gradient(new)
                average.set_value(BATCH_MOMENTUM * average[...] + (1 - BATCH_MOMENTUM) * new)
        return normalization.batch_norm(x, mean, variance, read(self.scale), read(self.bias), self._epsilon)


class GroupNorm(nnx.Module):
    """Each image is normalised by itself, over all positions and a group of `config.norm.groups`."""

    def __init__(self, config: ModelConfig | NormKnobs, features: int | None = None, axis: str = "width"):
        features = features or config.width
        self._epsilon, self._groups = config.norm.epsilon, math.gcd(config.norm.groups, features)
        self.scale = ones((features,), (axis,))
        self.bias = zeros((features,), (axis,)) if config.bias else None

    def __call__(self, x: Float[Array, "batch *tokens features"], valid: Valid | None = None) -> Features:
        return normalization.group_norm(x, self._groups, read(self.scale), read(self.bias), self._epsilon)


NORMS: dict[str, type[nnx.Module]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "srmsnorm": SimpleRMSNorm,
    "batchnorm": BatchNorm,
    "groupnorm": GroupNorm,
}


def make_norm(
    config: ModelConfig, *, kind: str | None = None, features: int | None = None, axis: str = "width"
) -> nnx.Module | None:
    """The norm that `kind`, or else `config.norm.kind`, names; None where it is off.

    features: how many, config.width by default; axis: the name of the axis that they are on.
    """
    kind = kind or config.norm.kind
    return NORMS[kind](config, features, axis) if kind in NORMS else None
