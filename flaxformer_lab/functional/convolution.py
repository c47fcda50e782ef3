"""Convolution as a dense map of each position's neighbourhood, one matrix product; and in one operation, for exports.

Under vmap over models a product stays a product, and a convolution becomes one in groups, which is slow on a CPU. An
exported file has one model, and its runtime has kernels for convolutions and for maxima over windows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxformer_lab.functional.platform import in_portable_forms, only_on_cpu
from flaxformer_lab.functional.products import product_precision


def neighbourhood_1d(
    x: Float[Array, "batch tokens features"],
    kernel_size: int,
    *,
    causal: bool,
    dilation: int = 1,
    circular: bool = False,
) -> Float[Array, "batch tokens {kernel_size}*features"]:
    """Each token's neighbours concatenated, `dilation` apart; beyond the ends zeros, or the other end (circular).

    The window is centred (an even one reaches one further back), or ends at the token with `causal`.
    """
    before = kernel_size - 1 if causal else kernel_size // 2
    ends = (before * dilation, (kernel_size - 1 - before) * dilation)
    padded = jnp.pad(x, ((0, 0), ends, (0, 0)), mode="wrap" if circular else "constant")
    starts, tokens = range(0, kernel_size * dilation, dilation), x.shape[1]
    return jnp.concatenate([padded[:, start : start + tokens] for start in starts], axis=-1)


def convolution_1d(
    x: Float[Array, "batch tokens features"],
    kernel: Float[Array, "{kernel_size}*features features_out"],
    kernel_size: int,
    *,
    causal: bool,
    dilation: int = 1,
    circular: bool = False,
) -> Float[Array, "batch tokens features_out"]:
    """`neighbourhood_1d` times the kernel."""
    before = (kernel_size - 1 if causal else kernel_size // 2) * dilation
    ends = (before, (kernel_size - 1) * dilation - before)
    if circular:
        x, ends = jnp.pad(x, ((0, 0), ends, (0, 0)), mode="wrap"), (0, 0)
    kernel = kernel.reshape(kernel_size, x.shape[2], -1)
    return _convolve(x, kernel, padding=(ends,), window_strides=(1,), rhs_dilation=(dilation,))


def max_pool_halves(
    x: Float[Array, "batch tokens features"], valid: Bool[Array, "batch tokens"] | None = None
) -> Float[Array, "batch (tokens+1)//2 features"]:
    """The maximum of every second token and its two neighbours; 0 where none of the three is valid."""
    lowest = jnp.finfo(x.dtype).min
    x = x if valid is None else jnp.where(valid[:, :, None], x, lowest)
    count = (x.shape[1] + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 2), (0, 0)), constant_values=lowest)
    left, middle, right = (padded[:, start : start + 2 * count - 1 : 2] for start in range(3))
    pooled = jnp.maximum(jnp.maximum(left, middle), right)
    return pooled if valid is None else jnp.where(pooled == lowest, 0, pooled)


def neighbourhood_2d(
    x: Float[Array, "batch rows columns features"], kernel_size: int, stride: int = 1
) -> Float[Array, "batch rows_out columns_out {kernel_size}*{kernel_size}*features"]:
    """The square neighbourhood of every `stride`-th position concatenated row by row, with zeros beyond the edges."""
    return jnp.concatenate(_windows(x, kernel_size, stride, 0.0), axis=-1)


def convolution_2d(
    x: Float[Array, "batch rows columns features"],
    kernel: Float[Array, "{kernel_size}*{kernel_size}*features features_out"],
    kernel_size: int,
    stride: int = 1,
) -> Float[Array, "batch rows_out columns_out features_out"]:
    """`neighbourhood_2d` times the kernel."""
    ends = _beyond_edges(kernel_size)
    kernel = kernel.reshape(kernel_size, kernel_size, x.shape[3], -1)
    return _convolve(x, kernel, padding=(ends, ends), window_strides=(stride, stride))


def max_pool_2d(
    x: Float[Array, "batch rows columns features"], kernel_size: int, stride: int
) -> Float[Array, "batch rows_out columns_out features"]:
    """The maximum of the square neighbourhood of every `stride`-th position, feature by feature."""
    if in_portable_forms():
        ends = _beyond_edges(kernel_size)
        window, strides = (1, kernel_size, kernel_size, 1), (1, stride, stride, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, ((0, 0), ends, ends, (0, 0)))
    return functools.reduce(jnp.maximum, _windows(x, kernel_size, stride, float(jnp.finfo(x.dtype).min)))


def _windows(
    x: Float[Array, "batch rows columns features"], kernel_size: int, stride: int, beyond: float
) -> list[Float[Array, "batch rows_out columns_out features"]]:
    """For each place of a square window, what lies there; the window is centred at every `stride`-th position."""
    pad = _beyond_edges(kernel_size)
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=beyond)
    rows, columns = x.shape[1:3]
    shifts = [(row, column) for row in range(kernel_size) for column in range(kernel_size)]
    return [padded[:, row : row + rows : stride, column : column + columns : stride] for row, column in shifts]


def depthwise_2d(
    x: Float[Array, "batch rows columns features"], kernel: Float[Array, "size size features"]
) -> Float[Array, "batch rows columns features"]:
    """Each feature's weighted sum over its own square neighbourhood, with zeros beyond the edges.

    The kernel's gradient is summed in the kernel's dtype.
    """
    return _depthwise(x, kernel) if x.dtype == kernel.dtype else _cast_depthwise(x, kernel)


def _depthwise(x: Array, kernel: Array) -> Array:
    size = kernel.shape[0]
    if only_on_cpu():  # where XLA takes several times as long for a convolution by groups as for this sum
        windows = _windows(x.astype(jnp.float32), size, 1, 0.0)
        weights = kernel.astype(jnp.float32).reshape(size * size, 1, 1, 1, -1)
        return sum(window * weight for window, weight in zip(windows, weights, strict=True)).astype(x.dtype)
    ends = _beyond_edges(size)
    options = {"padding": (ends, ends), "window_strides": (1, 1), "feature_group_count": x.shape[-1]}
    return _convolve(x, kernel[:, :, None], **options)


@jax.custom_vjp
def _cast_depthwise(x: Array, kernel: Array) -> Array:
    return _depthwise(x, kernel.astype(x.dtype))


def _cast_depthwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _cast_depthwise(x, kernel), (x, kernel)


def _cast_depthwise_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    wide = x.astype(kernel.dtype), gradient.astype(kernel.dtype)
    (dx,) = jax.vjp(lambda x: _depthwise(x, kernel.astype(x.dtype)), x)[1](gradient)
    (dkernel,) = jax.vjp(lambda kernel: _depthwise(wide[0], kernel), kernel)[1](wide[1])
    return dx, dkernel


_cast_depthwise.defvjp(_cast_depthwise_forward, _cast_depthwise_backward)


def _beyond_edges(kernel_size: int) -> tuple[int, int]:
    """How far a centred window reaches before its position and behind it."""
    return kernel_size // 2, kernel_size - 1 - kernel_size // 2


def _convolve(x: Array, kernel: Array, **options: Any) -> Array:
    """In x's dtype. Axes: batch, places, features; places, features in, features out."""
    places = "HW"[: x.ndim - 2]
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        dimension_numbers=(f"N{places}C", f"{places}IO", f"N{places}C"),
        precision=product_precision(x),
        preferred_element_type=x.dtype,
        **options,
    )
