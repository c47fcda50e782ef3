"""How far a function is from odd, from linear, and from treating its tokens or its features alike."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Function = Callable[[Float[Array, "batch tokens features"]], Float[Array, "batch tokens outputs"]]
Stream = Float[Array, "batch tokens features"]
Permutation = Int[np.ndarray, " places"]


def oddness(function: Function, x: Stream) -> float:
    """||f(X) + f(-X)|| / ||f(X) - f(-X)||: 0 for an odd function, infinite for an even one."""
    forward, backward = function(x), function(-x)
    return _ratio(forward + backward, forward - backward)


def linearity_error(function: Function, x: Stream, y: Stream, a: float = 0.7, b: float = -1.3) -> float:
    """||f(aX + bY) - a f(X) - b f(Y)|| / ||a f(X) + b f(Y)||."""
    apart = a * function(x) + b * function(y)
    return _ratio(function(a * x + b * y) - apart, apart)


def token_equivariance_error(function: Function, x: Stream, permutation: Permutation) -> float:
    """||f(P X) - P f(X)|| / ||f(X)|| for a permutation P of the tokens."""
    y = function(x)
    return _ratio(function(x[:, permutation]) - y[:, permutation], y)


def feature_equivariance_error(function: Function, x: Stream, permutation: Permutation) -> float:
    """||f(X P) - f(X) P|| / ||f(X)|| for a permutation P of the features; inputs and outputs must have as many."""
    y = function(x)
    return _ratio(function(x[:, :, permutation]) - y[:, :, permutation], y)


def _ratio(above: Array, below: Array) -> float:
    above, below = (float(jnp.linalg.norm(jnp.ravel(each).astype(jnp.float32))) for each in (above, below))
    return above / below if below > 0 else (0.0 if above == 0 else float("inf"))
