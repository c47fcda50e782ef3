"""How much of a scalar function's derivatives are mixed second ones.

On f = sum a_i x_i + sum_{i<j} b_ij x_i x_j of independent standard inputs this is the share of the variance that is
interaction, sum b^2 / (sum a^2 + sum b^2). On other functions it is not: it does not see the curvature of one input,
and a ReLU network has no second derivatives. `anova.py` has the share of the variance of any function.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxformer_lab.analysis.estimate import Estimate, jackknife

Scalar = Callable[[Float[Array, "batch inputs"]], Float[Array, " batch"]]


def hessian_interaction(
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
        raise ValueError(f"hessian_interaction needs 2 examples, not {len(x)}")
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
