"""Products of arrays, with the precision of their dtypes on every device.

GPUs and TPUs multiply float32 in fewer bits by default (TF32, one pass of bfloat16). Here float32 means float32, unless
the caller asks JAX for less (`jax.default_matmul_precision`, which is how `model.precision` works).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.platform import target_platform

Precision = jax.lax.Precision
Function = Callable[..., Any]
NARROW = frozenset(map(jnp.dtype, (jnp.bfloat16, jnp.float16)))


def product_precision(*factors: Array) -> Precision | None:
    """HIGHEST for float32, or None where the caller has asked JAX for another; DEFAULT for 16-bit factors.

    HIGH for float32 times 16 bits (a state and 16-bit tokens): TF32 on a GPU, three passes of bfloat16 on a TPU. More
    would not show in a 16-bit result.
    """
    types = {jnp.dtype(factor.dtype) for factor in factors}
    if types <= NARROW:
        return Precision.DEFAULT
    if types & NARROW:
        return Precision.HIGH
    return None if jax.config.jax_default_matmul_precision is not None else Precision.HIGHEST


def kernel_precision(*factors: Array) -> Precision:
    """As `product_precision`, for the products inside a kernel: Pallas has nothing between HIGHEST and DEFAULT."""
    return Precision.DEFAULT if _precision_name(*factors) in ("default", "fastest", "bfloat16") else Precision.HIGHEST


def _precision_name(*factors: Array) -> str:
    """`product_precision` as a name that `jax.default_matmul_precision` takes."""
    precision = product_precision(*factors)
    return jax.config.jax_default_matmul_precision if precision is None else precision.name.lower()


def einsum(indices: str, *factors: Array) -> Float[Array, "..."]:
    """An einsum in the dtype of its factors."""
    return jnp.einsum(indices, *factors, precision=product_precision(*factors))


def product(indices: str, *factors: Array) -> Float[Array, "..."]:
    """An einsum whose sums and result are float32, whatever its factors are."""
    options = {"precision": product_precision(*factors), "preferred_element_type": jnp.float32}
    return jnp.einsum(indices, *cast_for_product(*factors), **options)


def cast_for_product(*factors: Array) -> tuple[Array, ...]:
    """Factors of a product with a float32 result, cast to dtypes that the device can multiply.

    On a CPU, XLA multiplies two 16-bit arrays into float32 in some layouts only; mixed dtypes do not work everywhere.
    """
    types = {jnp.dtype(factor.dtype) for factor in factors}
    if len(types) == 1 and (target_platform() != "cpu" or not types <= NARROW):
        return factors
    return tuple(factor.astype(jnp.float32) for factor in factors)


def widened(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """float16 as float32, any other dtype as it is: float16 has no number above 65,504 and few below 6e-5."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def matmul(a: Float[Array, "*batch inner"], b: Float[Array, "... inner columns"]) -> Float[Array, "..."]:
    """a b in their dtype."""
    return jnp.matmul(a, b, precision=product_precision(a, b))


def at_precision(precision: str) -> Callable[[Function], Function]:
    """Decorates a function so that it is traced at a precision: `highest`, `high` or `default`.

    `jax.default_matmul_precision` is not a decorator for this: one instance of it cannot be entered twice.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def traced(*arguments: Any, **options: Any) -> Any:
            with jax.default_matmul_precision(precision):
                return function(*arguments, **options)

        return traced

    return decorate


def library_precision(factor: Array) -> Any:
    """A context in which the products of a library follow `product_precision`."""
    return jax.default_matmul_precision(_precision_name(factor))


def call_library(function: Function, *arguments: Any) -> Any:
    """`function(*arguments)`, whose products follow `kernel_precision` of the last argument in both passes.

    A library's backward pass is traced later than its forward pass, when another precision may be set.
    """
    return _call_library(function, kernel_precision(arguments[-1]).name.lower(), *arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call_library(function: Function, precision: str, *arguments: Any) -> Any:
    with jax.default_matmul_precision(precision):
        return function(*arguments)


def _call_library_forward(function: Function, precision: str, *arguments: Any) -> tuple[Any, Function]:
    with jax.default_matmul_precision(precision):
        return jax.vjp(function, *arguments)


def _call_library_backward(function: Function, precision: str, pull: Function, gradient: Any) -> Any:
    del function
    with jax.default_matmul_precision(precision):
        return pull(gradient)


_call_library.defvjp(_call_library_forward, _call_library_backward)
