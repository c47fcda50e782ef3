"""The functional ANOVA of a scalar function of independent inputs: f = f_0 + sum_i f_i + sum_{i<j} f_ij + ...

Each term has mean 0 over each of its inputs, so the variances of the terms add up to that of f, and their shares are
Sobol's indices (Sobol' 1993). All are estimated by sampling f alone: a ReLU network has no Hessian, but it has these.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxformer_lab.analysis.estimate import Estimate, jackknife

Scalar = Callable[[Float[Array, "batch inputs"]], Float[Array, " batch"]]
MAX_PAIR_INPUTS = 16  # with more inputs, pairs are left out: they need inputs^2 / 2 times the calls


@dataclass(frozen=True)
class Anova:
    """Shares of the variance of f.

    interaction: of all terms of two inputs or more, which no sum of functions of one input explains.
    first_order[i]: of f_i. total[i]: of all terms with input i. pairs[i, j]: of f_ij, None beyond MAX_PAIR_INPUTS.
    """

    interaction: Estimate
    first_order: Float[np.ndarray, " inputs"]
    total: Float[np.ndarray, " inputs"]
    pairs: Float[np.ndarray, "inputs inputs"] | None


def functional_anova(
    function: Scalar, x: Float[Array, "examples inputs"], *, backgrounds: int = 8, seed: int = 0
) -> Anova:
    """Sobol's indices of `function` where each input is drawn on its own from its column of x.

    For a point a and points b of its background, f(b with input i from a) - f(b) has the mean f_i(a_i) over b, and
    f(a) - f(b) less all of these has the mean of all interaction at a. A product of two such values with different b is
    therefore an unbiased estimate of a squared term, exactly 0 where the term is, whatever the other terms are. Where
    interaction prevails among many inputs that estimate is noisy, and 1 less the first-order shares is the better one:
    the one with the smaller standard error is given. Total indices are Jansen's (1999). Takes examples x backgrounds x
    (inputs + 1) calls of f, more for pairs.

    Raises:
        ValueError: fewer than two examples or backgrounds.
    """
    if len(x) < 2 or backgrounds < 2:
        raise ValueError(f"functional_anova needs 2 examples and 2 backgrounds, not {len(x)} and {backgrounds}")
    generator = np.random.default_rng(seed)
    number, inputs = x.shape
    rows = generator.integers(number, size=(1 + backgrounds, number, inputs))
    points = jnp.take_along_axis(jnp.asarray(x)[None], jnp.asarray(rows), axis=1)
    with_pairs = inputs <= MAX_PAIR_INPUTS
    at, base, single, double = _values(function, points[0], points[1:], with_pairs)
    at, base, single = (np.asarray(each, np.float64) for each in (at, base, single))
    change = single - base  # [inputs, backgrounds, examples]
    variance = np.mean(np.square(at - base), axis=0) / 2
    first_order = _square_of_mean(change)  # [inputs, examples]
    estimates = (
        jackknife(_quotient, _square_of_mean(at - base - change.sum(axis=0)), variance),
        jackknife(lambda main, all_of_it: 1 - _quotient(main, all_of_it), first_order.sum(axis=0), variance),
    )
    scale = max(variance.mean(), np.finfo(np.float64).tiny)
    pairs = None
    if with_pairs:
        pairs = np.zeros((inputs, inputs))
        left, right = np.triu_indices(inputs, 1)
        if len(left):
            crossed = np.asarray(double, np.float64) - single[left] - single[right] + base
            pairs[left, right] = pairs[right, left] = _square_of_mean(crossed).mean(axis=-1) / scale
    return Anova(
        min(estimates, key=lambda each: each.standard_error),
        first_order.mean(axis=-1) / scale,
        np.mean(np.square(change), axis=(1, 2)) / 2 / scale,
        pairs,
    )


def _quotient(above, below):
    return above[..., 0] / below[..., 0]


def _square_of_mean(values: Float[np.ndarray, "*any backgrounds examples"]) -> Float[np.ndarray, "*any examples"]:
    """An unbiased estimate of the square of the mean over backgrounds: the mean product of two different values."""
    number = values.shape[-2]
    return (np.square(values.sum(axis=-2)) - np.square(values).sum(axis=-2)) / (number * (number - 1))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _values(
    function: Scalar, a: Float[Array, "examples inputs"], b: Float[Array, "backgrounds examples inputs"], pairs: bool
):
    """f at a, at b, at b with one input from a: [inputs, ...], and with two: [pairs, ...] (None without)."""
    inputs = a.shape[1]
    flat = lambda x: function(x.reshape(-1, inputs)).reshape(b.shape[:2])  # noqa: E731

    def mixed(from_a: Array) -> Array:
        return flat(jnp.where(from_a, a, b))

    units = jnp.eye(inputs, dtype=bool)
    left, right = np.triu_indices(inputs, 1)
    double = jax.lax.map(mixed, units[left] | units[right]) if pairs and len(left) else None
    return function(a), flat(b), jax.lax.map(mixed, units), double
