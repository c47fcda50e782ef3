"""Losses and scores as averages: a weighted sum and its weight, so any split of the batch adds up to the same value."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from flaxformer_lab.functional.metrics import Average, counts_outside


@jax.jit
def cross_entropy(
    logits: Float[Array, "*batch classes"], targets: Integer[Array, "*batch"], weights: Float[Array, "*batch"]
) -> Average:
    """-log softmax(logits)[target] in nats. NaN where a target that has a weight is not one of the classes."""
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.int32)
    # A comparison instead of a gather: its gradient is elementwise, where a gather's is a slow scatter.
    chosen = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    target_logit = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - target_logit
    losses = jnp.where(counts_outside(targets, logits.shape[-1], weights), jnp.nan, losses)
    return Average(jnp.sum(losses * weights), jnp.sum(weights))


@jax.jit
def binary_cross_entropy(
    logits: Float[Array, "*batch"], targets: Int[Array, "*batch"], weights: Float[Array, "*batch"]
) -> Average:
    """-log sigmoid(logit) of a target 1, -log sigmoid(-logit) of a target 0, in nats."""
    logits = logits.astype(jnp.float32)
    losses = jax.nn.softplus(jnp.where(targets == 1, -logits, logits))
    losses = jnp.where(counts_outside(targets, 2, weights), jnp.nan, losses)
    return Average(jnp.sum(losses * weights), jnp.sum(weights))


@jax.jit
def squared_error(
    outputs: Float[Array, "*batch features"],
    targets: Float[Array, "*batch features"],
    weights: Float[Array, "*batch"],
    *,
    variance: float | Float[Array, ""],
) -> Average:
    """The mean over features of (output - target)^2, in units of the target's variance: 1 for a guess of the mean."""
    errors = jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets.astype(jnp.float32)), axis=-1) / variance
    return Average(jnp.sum(errors * weights), jnp.sum(weights))


@jax.jit
def explained_variance(
    outputs: Float[Array, "*batch features"], targets: Float[Array, "*batch features"], weights: Float[Array, "*batch"]
) -> Average:
    """R2 = 1 - sum (output - target)^2 / sum target^2 of targets with mean 0; weighted by the targets' squares.

    The variance is that of the evaluated examples. A product of Gaussians has heavy tails: with the true variance, a
    sample of small targets would score too well.
    """
    targets = targets.astype(jnp.float32)
    squares = jnp.mean(jnp.square(targets), axis=-1)
    errors = jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets), axis=-1)
    return Average(jnp.sum((squares - errors) * weights), jnp.sum(squares * weights))


@jax.jit
def absolute_error(
    outputs: Float[Array, "*batch"], targets: Float[Array, "*batch"], weights: Float[Array, "*batch"]
) -> Average:
    """The mean of |output - target|."""
    return Average(jnp.sum(jnp.abs(outputs - targets) * weights), jnp.sum(weights))


@jax.jit
def accuracy(
    logits: Float[Array, "*batch classes"], targets: Int[Array, "*batch"], weights: Float[Array, "*batch"]
) -> Average:
    """1 where the largest logit is the target's, else 0."""
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return Average(jnp.sum(correct * weights), jnp.sum(weights))
