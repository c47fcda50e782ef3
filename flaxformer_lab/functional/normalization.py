"""Normalisation over a token's features, or of each feature over the batch, computed in float32."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxformer_lab.functional.linear import over_features
from flaxformer_lab.functional.platform import target_platform


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


def batch_norm(
    x: Float[Array, "*batch features"],
    mean: Float[Array, " features"],
    variance: Float[Array, " features"],
    scale: Float[Array, " features"],
    bias: Float[Array, " features"] | None,
    epsilon: float,
) -> Float[Array, "*batch features"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, by feature (Ioffe and Szegedy 2015)."""
    y = x.astype(jnp.float32)
    y = (y - over_features(mean, y)) * over_features(scale * jax.lax.rsqrt(variance + epsilon), y)
    return (y if bias is None else y + over_features(bias, y)).astype(x.dtype)


def batch_statistics(
    x: Float[Array, "*batch features"], valid: Bool[Array, "*batch"] | None = None, *, axis_name: str | None = None
) -> tuple[Float[Array, " features"], Float[Array, " features"], Float[Array, ""]]:
    """(mean, variance, count): of each feature over all valid positions, on all devices of a mapped axis."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    weights = jnp.ones(x.shape[:-1]) if valid is None else valid.astype(jnp.float32)
    total = (lambda sums: sums) if axis_name is None else functools.partial(jax.lax.psum, axis_name=axis_name)
    count = jnp.maximum(total(jnp.sum(weights)), 1)
    mean = total(jnp.sum(x * weights[..., None], axes)) / count
    squares = jnp.square(x - over_features(mean, x)) * weights[..., None]
    return mean, total(jnp.sum(squares, axes)) / count, count


def group_norm(
    x: Float[Array, "batch *tokens features"],
    groups: int,
    scale: Float[Array, " features"],
    bias: Float[Array, " features"] | None,
    epsilon: float,
) -> Float[Array, "batch *tokens features"]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, over all tokens and a group of features (Wu and He 2018)."""
    grouped = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    rows = jnp.swapaxes(grouped, 1, 2)
    y = standardised(rows.reshape(*rows.shape[:2], -1), epsilon, True).reshape(rows.shape)
    y = jnp.swapaxes(y, 1, 2).reshape(x.shape)
    y = y * over_features(scale, y)
    return (y if bias is None else y + over_features(bias, y)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def standardised(x: Float[Array, "*batch features"], epsilon: float, centred: bool) -> Float[Array, "*batch features"]:
    """(x - mean) / sqrt(var + epsilon), or x / sqrt(mean x^2 + epsilon) without `centred`.

    The gradient is written out, r (g - mean g - y mean(g y)) with y the output and r = 1 / sqrt(var + epsilon), and
    the row statistics are behind a barrier on a CPU, whose compiler would recompute a row's sums for each of its
    features; a GPU's makes one kernel of the whole formula, if nothing is between.
    """
    return standardise_rows(x, epsilon, centred)[0]


@functools.partial(jax.jit, static_argnums=(1, 2))
def standardise_rows(x: Float[Array, "*batch features"], epsilon: float, centred: bool):
    """`standardised`, and what its gradient needs. An export finds it by its name (`export/onnx_operators.py`)."""
    mean = _mean(x) if centred else 0.0
    inverse_deviation = jax.lax.rsqrt(_mean((x - mean) ** 2) + epsilon)
    if target_platform() == "cpu":
        mean, inverse_deviation = jax.lax.optimization_barrier((mean, inverse_deviation))
    return (x - mean) * inverse_deviation, (x, mean, inverse_deviation)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(epsilon: float, centred: bool, residuals, gradient: Float[Array, "*batch features"]):
    x, mean, inverse_deviation = residuals
    y = (x - mean) * inverse_deviation
    along_constant = _mean(gradient) if centred else 0.0
    along_constant, along_y = jax.lax.optimization_barrier((along_constant, _mean(gradient * y)))
    return (inverse_deviation * (gradient - along_constant - y * along_y),)


standardised.defvjp(standardise_rows, _backward)


def _mean(x: Float[Array, "*batch features"]) -> Float[Array, "*batch 1"]:
    return jnp.mean(x, axis=-1, keepdims=True)
