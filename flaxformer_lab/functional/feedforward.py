"""Feature mixing inside each token: the feed-forward formulas. Kernels are [features in, features out]."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import broadcast_parameter
from flaxformer_lab.functional.platform import target_platform

Activation = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """x: no activation."""
    return x


@jax.custom_jvp
def _gelu_tanh_from_input(x: Array) -> Array:
    """GELU by tanh, whose derivative is written with another function than its value, a sigmoid.

    So a compiler computes each where it is used, from x. If they shared tanh(u), it would write that to memory in the
    forward pass and read it in the backward pass: a third more bytes in an FFN's elementwise operations on a GPU.
    """
    return jax.nn.gelu(x, approximate=True)


@_gelu_tanh_from_input.defjvp
def _gelu_tanh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
    (x,), (dx,) = primals, tangents
    wide = x.astype(jnp.float32)
    scale = 2 * (2 / jnp.pi) ** 0.5
    twice_u = scale * (wide + 0.044715 * wide**3)
    share, rest = jax.nn.sigmoid(twice_u), jax.nn.sigmoid(-twice_u)
    slope = share + wide * share * rest * scale * (1 + 3 * 0.044715 * wide**2)
    return _gelu_tanh_from_input(x), dx * slope.astype(x.dtype)


def gelu_tanh(x: Array) -> Array:
    """GELU by tanh (Hendrycks and Gimpel 2016)."""
    # On a CPU, where arithmetic costs more than memory, value and derivative share tanh.
    return jax.nn.gelu(x, approximate=True) if target_platform() == "cpu" else _gelu_tanh_from_input(x)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": gelu_tanh,
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
