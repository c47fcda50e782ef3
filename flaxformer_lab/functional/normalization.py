"""Normalisation over a token's features, computed in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import over_features


def layer_norm(
    x: Float[Array, "*batch features"],
    scale: Float[Array, " features"],
    bias: Float[Array, " features"] | None,
    epsilon: float,
) -> Float[Array, "*batch features"]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias (Ba et al. 2016)."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon) * over_features(scale, y)
    return (y if bias is None else y + over_features(bias, y)).astype(x.dtype)


def rms_norm(
    x: Float[Array, "*batch features"], scale: Float[Array, " features"], epsilon: float
) -> Float[Array, "*batch features"]:
    """x / sqrt(mean x^2 + epsilon) * scale (Zhang and Sennrich 2019). Odd: -x gives minus the output."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    return (y * over_features(scale, y)).astype(x.dtype)
