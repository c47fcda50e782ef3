"""Products of arrays, as precise as their types say on every device.

GPUs and TPUs multiply float32 in fewer bits by default (TF32, one pass of bfloat16). Here float32 means float32, unless
the caller asks JAX for less (`jax.default_matmul_precision`, which is how `model.precision` works).
"""

import contextlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Precision = jax.lax.Precision
NARROW = frozenset(map(jnp.dtype, (jnp.bfloat16, jnp.float16)))


def product_precision(*factors: Array) -> Precision | None:
    """HIGHEST for float32, or None where the caller has asked JAX for another; DEFAULT for 16-bit factors.

    HIGH for float32 beside 16 bits (a state that 16-bit tokens meet): TF32 on a GPU, three passes of bfloat16 on a TPU.
    More would not show in a result of 16 bits.
    """
    types = {jnp.dtype(factor.dtype) for factor in factors}
    if types <= NARROW:
        return Precision.DEFAULT
    if types & NARROW:
        return Precision.HIGH
    return None if jax.config.jax_default_matmul_precision is not None else Precision.HIGHEST


def einsum(indices: str, *factors: Array) -> Float[Array, "..."]:
    """An einsum in the type of its factors."""
    return jnp.einsum(indices, *factors, precision=product_precision(*factors))


def product(indices: str, *factors: Array) -> Float[Array, "..."]:
    """An einsum whose sums and result are float32, whatever its factors are."""
    options = {"precision": product_precision(*factors), "preferred_element_type": jnp.float32}
    return jnp.einsum(indices, *factors, **options)


def matmul(a: Float[Array, "*batch rows inner"], b: Float[Array, "*batch inner columns"]) -> Float[Array, "..."]:
    """a b in the type of the two."""
    return jnp.matmul(a, b, precision=product_precision(a, b))


def library_precision(*factors: Array) -> contextlib.AbstractContextManager:
    """A context in which the products of a library follow `product_precision` too."""
    if product_precision(*factors) is Precision.HIGHEST:
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()
