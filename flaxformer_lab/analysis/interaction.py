"""How much of a scalar function is interaction between its inputs rather than a sum of functions of one input each.

Two measures with the same truth on f = sum a_i x_i + sum_{i<j} b_ij x_i x_j of independent standard inputs, namely
sum b^2 / (sum a^2 + sum b^2): from second derivatives, and from partial dependence (Friedman & Popescu 2008).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxformer_lab.analysis.estimate import Estimate, jackknife

Scalar = Callable[[Float[Array, "batch inputs"]], Float[Array, " batch"]]


def interaction_share(
    function: Scalar, x: Float[Array, "examples inputs"], *, num_random_vectors: int | None = None, seed: int = 0
) -> Estimate:
    """sum_{i<j} I_ij / (sum_{i<j} I_ij + sum_i (E d_i f)^2), with I_ij = E (d2f / dx_i dx_j)^2.

    Columns of the Hessian are computed one at a time, forward over reverse; it is never stored.
    num_random_vectors: None computes all `inputs` columns; a number n draws n pairs of random sign vectors v, whose
    products H v have these sums of squares as means (Hutchinson 1990; Bekas et al. 2007 for the diagonal).

    Raises:
        ValueError: fewer than two examples, where (E d_i f)^2 and the variance of d_i f cannot be told apart.
    """
    if len(x) < 2:
        raise ValueError(f"interaction_share needs 2 examples, not {len(x)}")
    if num_random_vectors is None:
        pairs, gradients = _exact(function, x)
    else:
        pairs, gradients = _sampled(function, x, num_random_vectors, jax.random.key(seed))
    pairs, gradients = np.asarray(pairs), np.asarray(gradients, np.float64)
    return jackknife(functools.partial(_share, number=len(x)), pairs, gradients, np.square(gradients))


def _share(pairs, gradient, squared_gradient, number):
    # The square of a mean is too large by the variance of that mean.
    main = np.square(gradient) - (squared_gradient - np.square(gradient)) / (number - 1)
    main = np.maximum(main.sum(axis=-1), 0)
    return pairs[..., 0] / (pairs[..., 0] + main)


@functools.partial(jax.jit, static_argnums=0)
def _exact(function: Scalar, x: Float[Array, "examples inputs"]):
    """Per example: sum_{i<j} (d2f / dx_i dx_j)^2, and the gradient."""
    gradient = jax.grad(lambda x: jnp.sum(function(x)))

    def column(total: Array, unit: Float[Array, " inputs"]) -> tuple[Array, None]:
        _, second = jax.jvp(gradient, (x,), (jnp.broadcast_to(unit, x.shape),))
        return total + jnp.sum(jnp.square(second) * (1 - unit)[None], axis=1), None

    total, _ = jax.lax.scan(column, jnp.zeros(x.shape[0]), jnp.eye(x.shape[1], dtype=x.dtype))
    return total / 2, gradient(x)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _sampled(function: Scalar, x: Float[Array, "examples inputs"], num_random_vectors: int, key: Key[Array, ""]):
    gradient = jax.grad(lambda x: jnp.sum(function(x)))

    def accumulate(total: Array, key: Key[Array, ""]) -> tuple[Array, None]:
        v, w = (jax.random.rademacher(use, x.shape, x.dtype) for use in jax.random.split(key))
        hv, hw = (jax.jvp(gradient, (x,), (signs,))[1] for signs in (v, w))
        everything = jnp.sum(jnp.square(hv) + jnp.square(hw), axis=1) / 2
        diagonal = jnp.sum(v * hv * w * hw, axis=1)
        return total + (everything - diagonal) / 2, None

    keys = jax.random.split(key, num_random_vectors)
    total, _ = jax.lax.scan(accumulate, jnp.zeros(x.shape[0]), keys)
    return total / num_random_vectors, gradient(x)


def friedman_h2(
    function: Scalar, x: Float[Array, "examples inputs"], background: Float[Array, "background inputs"]
) -> Estimate:
    """The share of the variance of f that no sum of functions of one input explains: E (f - sum_i PD_i)^2 / E f^2.

    PD_i(x_i) is the mean of f over the background with input i set to x_i; all functions are centred (Friedman &
    Popescu 2008, section 8, over all orders at once). The background is halved and the two halves' residuals are
    multiplied, so that the noise of a finite background does not count as interaction. Takes inputs x examples x
    background calls of f.

    Raises:
        ValueError: fewer than two examples, or a background of fewer than two.
    """
    if len(background) < 2 or len(x) < 2:
        raise ValueError(f"friedman_h2 needs 2 examples and a background of 2, not {len(x)} and {len(background)}")
    value, first, second = (np.asarray(each, np.float64) for each in _dependence(function, x, background))
    value, first, second = (each - each.mean() for each in (value, first, second))
    return jackknife(lambda a, b: a[..., 0] / b[..., 0], (value - first) * (value - second), np.square(value))


@functools.partial(jax.jit, static_argnums=0)
def _dependence(function: Scalar, x: Array, background: Array):
    """f(x), and sum_i PD_i(x_i) from either half of the background: [examples] each."""
    half = len(background) // 2

    def per_example(example: Float[Array, " inputs"]) -> tuple[Array, Array]:
        def partial_dependence(index: Array) -> Array:
            return function(background.at[:, index].set(example[index]))

        values = jax.lax.map(partial_dependence, jnp.arange(x.shape[1]))  # [inputs, background]
        return jnp.sum(jnp.mean(values[:, :half], axis=1)), jnp.sum(jnp.mean(values[:, half:], axis=1))

    return function(x), *jax.lax.map(per_example, x)
