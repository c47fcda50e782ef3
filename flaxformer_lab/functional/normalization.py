"""Normalisation over a token's features, computed in float32."""

import functools

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
    y = standardised(x.astype(jnp.float32), epsilon, True)
    y = y * over_features(scale, y)
    return (y if bias is None else y + over_features(bias, y)).astype(x.dtype)


def rms_norm(
    x: Float[Array, "*batch features"], scale: Float[Array, " features"], epsilon: float
) -> Float[Array, "*batch features"]:
    """x / sqrt(mean x^2 + epsilon) * scale (Zhang and Sennrich 2019). Odd: -x gives minus the output."""
    y = standardised(x.astype(jnp.float32), epsilon, False)
    return (y * over_features(scale, y)).astype(x.dtype)


def simple_rms_norm(x: Float[Array, "*batch features"], epsilon: float) -> Float[Array, "*batch features"]:
    """x / sqrt(mean x^2 + epsilon): no parameters at all (SRMSNorm, Qin et al. 2023, eq. 13)."""
    return standardised(x.astype(jnp.float32), epsilon, False).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def standardised(x: Float[Array, "*batch features"], epsilon: float, centred: bool) -> Float[Array, "*batch features"]:
    """(x - mean) / sqrt(var + epsilon), or x / sqrt(mean x^2 + epsilon) where it is not centred.

    The gradient is written out, r (g - mean g - y mean(g y)) with y the output and r = 1 / sqrt(var + epsilon), and
    the row statistics stand behind a barrier: left alone, the CPU compiler computes a row's sums anew for each of
    its features.
    """
    return _forward(x, epsilon, centred)[0]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _forward(x: Float[Array, "*batch features"], epsilon: float, centred: bool):
    mean = _mean(x) if centred else 0.0
    inverse = jax.lax.rsqrt(_mean((x - mean) ** 2) + epsilon)
    mean, inverse = jax.lax.optimization_barrier((mean, inverse))
    return (x - mean) * inverse, (x, mean, inverse)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(epsilon: float, centred: bool, residuals, gradient: Float[Array, "*batch features"]):
    x, mean, inverse = residuals
    y = (x - mean) * inverse
    along_constant = _mean(gradient) if centred else 0.0
    along_constant, along_y = jax.lax.optimization_barrier((along_constant, _mean(gradient * y)))
    return (inverse * (gradient - along_constant - y * along_y),)


standardised.defvjp(_forward, _backward)


def _mean(x: Float[Array, "*batch features"]) -> Float[Array, "*batch 1"]:
    return jnp.mean(x, axis=-1, keepdims=True)
