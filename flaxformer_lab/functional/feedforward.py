"""Feature mixing inside each token: the feed-forward formulas. Kernels are [features in, features out]."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import broadcast_parameter

Activation = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """x: no activation."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": identity,
}


ODD_ACTIVATIONS = ("identity", "tanh")  # f(-x) = -f(x)


def gate(
    a: Float[Array, "*batch hidden"], b: Float[Array, "*batch hidden"], activation: Activation
) -> Float[Array, "*batch hidden"]:
    """activation(a) * b: the gated linear unit (Shazeer 2020, eq. 5); identity: bilinear."""
    return activation(a) * b


def per_feature_mlp(
    x: Float[Array, "*batch features"],
    up: Float[Array, "features hidden"],
    up_bias: Float[Array, "features hidden"] | None,
    down: Float[Array, "features hidden"],
    down_bias: Float[Array, " features"] | None,
    activation: Activation,
) -> Float[Array, "*batch features"]:
    """y_c = sum_h down_ch activation(up_ch x_c + b_ch) + b_c: a small MLP for each feature, without mixing."""

    def per_token(parameter: Array) -> Array:
        return broadcast_parameter(parameter, (*x.shape, *parameter.shape[1:]), x.dtype)

    hidden = x[..., None] * per_token(up)
    if up_bias is not None:
        hidden = hidden + per_token(up_bias)
    y = jnp.sum(activation(hidden) * per_token(down), axis=-1)
    return y if down_bias is None else y + per_token(down_bias)
