"""How far a function is from odd, from linear, and from equivariant to permuted tokens or features."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Function = Callable[[Float[Array, "batch tokens features"]], Float[Array, "batch tokens outputs"]]
TokenVectors = Float[Array, "batch tokens features"]
Permutation = Int[np.ndarray, " places"]
Scalar = Float[Array, ""]


def oddness(function: Function, x: TokenVectors) -> Scalar:
    """||f(X) + f(-X)|| / ||f(X) - f(-X)||: 0 for an odd function, infinite for an even one."""
    forward, backward = function(x), function(-x)
    return _ratio(forward + backward, forward - backward)


def linearity_error(function: Function, x: TokenVectors, y: TokenVectors, a: float = 0.7, b: float = -1.3) -> Scalar:
    """||f(aX + bY) - a f(X) - b f(Y)|| / ||a f(X) + b f(Y)||."""
    apart = a * function(x) + b * function(y)
    return _ratio(function(a * x + b * y) - apart, apart)


def token_equivariance_error(function: Function, x: TokenVectors, permutation: Permutation) -> Scalar:
    """||f(P X) - P f(X)|| / ||f(X)|| for a permutation P of the tokens."""
    y = function(x)
    return _ratio(function(x[:, permutation]) - y[:, permutation], y)


def feature_equivariance_error(function: Function, x: TokenVectors, permutation: Permutation) -> Scalar:
    """||f(X P) - f(X) P|| / ||f(X)|| for a permutation P of the features; as many inputs as outputs."""
    y = function(x)
    return _ratio(function(x[:, :, permutation]) - y[:, :, permutation], y)


def equivariance_errors(
    function: Function, x: TokenVectors, tokens: Int[np.ndarray, " tokens"], features: Int[np.ndarray, " features"]
) -> tuple[Scalar, Scalar]:
    """Both of the above, by a single call of a function that does not mix examples."""
    y, of_tokens, of_features = jnp.split(function(jnp.concatenate([x, x[:, tokens], x[:, :, features]])), 3)
    return _ratio(of_tokens - y[:, tokens], y), _ratio(of_features - y[:, :, features], y)


def _ratio(above: Array, below: Array) -> Scalar:
    above, below = (jnp.linalg.norm(jnp.ravel(each).astype(jnp.float32)) for each in (above, below))
    # 0 / 0 is no error.
    return jnp.where(above == 0, 0.0, above / below)
