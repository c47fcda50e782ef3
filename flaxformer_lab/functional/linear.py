"""Linear maps over features. Parameters are cast to the input's dtype, so the input decides the precision.

A parameter's gradient is a sum over examples and tokens. It is summed and returned in the parameter's float32, also
where the computation has 16 bits: a sum of 8,192 ones in bfloat16 is 256.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from flaxformer_lab.functional.int8 import Int8Matrix, int8_matmul
from flaxformer_lab.functional.products import cast_for_product, product_precision
from flaxformer_lab.functional.products import matmul as matmul_at_precision


def diagonal(
    x: Float[Array, "*batch features"],
    scale: Float[Array, " features"],
    bias: Float[Array, " features"] | None = None,
) -> Float[Array, "*batch features"]:
    """x_c w_c + b_c: every output feature depends on the input feature of the same index alone."""
    return add_bias(x * broadcast_parameter(scale, x.shape, x.dtype), bias)


def add_bias(
    x: Float[Array, "*batch features"], bias: Float[Array, "*own features"] | None
) -> Float[Array, "*batch features"]:
    """x + b, or x where there is none. The last axes of x are those of b."""
    return x if bias is None else x + broadcast_parameter(bias, x.shape, x.dtype)


def over_features(
    vector: Shaped[Array, " features"], x: Float[Array, "*batch features"]
) -> Shaped[Array, "*ones features"]:
    """Returns `vector` with the rank of x, so that it broadcasts along x's last axis (rank promotion is an error)."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


# ------------------------------------------------------------------------------------------------- how parameters act


def broadcast_parameter(
    parameter: Float[Array, "*own"], shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "*shape"]:
    """A parameter broadcast to `shape`, whose last axes are the parameter's, in the dtype of the computation.

    Its gradient is the sum over the first axes, in the parameter's dtype.
    """
    return _broadcast(parameter, shape, dtype) if parameter.dtype == dtype else _cast(parameter, shape, dtype)


def _broadcast(parameter, shape, dtype):
    ones = (1,) * (len(shape) - parameter.ndim)
    return jnp.broadcast_to(parameter.astype(dtype).reshape(ones + parameter.shape), shape)


_cast = jax.custom_vjp(_broadcast, nondiff_argnums=(1, 2))


def _cast_forward(parameter, shape, dtype):
    return _cast(parameter, shape, dtype), parameter


def _cast_backward(shape, dtype, parameter, gradient):
    del dtype
    return (jnp.sum(gradient.astype(parameter.dtype), axis=tuple(range(len(shape) - parameter.ndim))),)


def matmul(
    x: Float[Array, "*batch features_in"], kernel: Float[Array, "features_in features_out"] | Int8Matrix
) -> Float[Array, "*batch features_out"]:
    """x W: every output feature is a weighted sum of all input features."""
    if isinstance(kernel, Int8Matrix):
        return int8_matmul(x, kernel)
    return matmul_at_precision(x, kernel) if x.dtype == kernel.dtype else _matmul(x, kernel)


@jax.custom_vjp
def _matmul(x, kernel):
    return matmul_at_precision(x, kernel.astype(x.dtype))


def _matmul_forward(x, kernel):
    return _matmul(x, kernel), (x, kernel)


def _matmul_backward(residuals, gradient):
    x, kernel = residuals
    return matmul_input_gradient(gradient, kernel.astype(x.dtype)), matmul_kernel_gradient(x, gradient)


def matmul_input_gradient(
    gradient: Float[Array, "*batch features_out"], kernel: Float[Array, "features_in features_out"]
) -> Float[Array, "*batch features_in"]:
    """dx = dy W^T."""
    dimensions = (((gradient.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(gradient, kernel, dimensions, precision=product_precision(gradient, kernel))


def matmul_kernel_gradient(
    x: Float[Array, "*batch features_in"], gradient: Float[Array, "*batch features_out"]
) -> Float[Array, "features_in features_out"]:
    """dW = sum over examples and tokens of x^T dy, in float32."""
    summed = tuple(range(x.ndim - 1))
    options = {"precision": product_precision(x, gradient), "preferred_element_type": jnp.float32}
    return jax.lax.dot_general(*cast_for_product(gradient, x), ((summed, summed), ((), ())), **options).T


def take_rows(
    table: Float[Array, "rows features"], indices: Int[Array, "*batch"], dtype: DTypeLike
) -> Float[Array, "*batch features"]:
    """Rows of a table; NaN for an index that it does not have, negative ones included, and no gradient.

    Cast after the gather: its gradient adds up rows in the table's dtype.
    """
    return table.at[indices].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(dtype)


_cast.defvjp(_cast_forward, _cast_backward)
_matmul.defvjp(_matmul_forward, _matmul_backward)
