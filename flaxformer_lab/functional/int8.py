"""Matrices in 8 bits, for products that take most of their time to read a matrix: decoding.

Each column, which makes one output feature, has a scale of its own: W_ij = values_ij scale_j, with values from -127 to
127 (weight-only and symmetric, as in LLM.int8(), Dettmers et al. 2022, section 2.1, without outliers apart).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from flaxformer_lab.functional.products import product


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Matrix:
    """A pytree that stands for a matrix where parameters are read: it has a matrix's shape, `[...]` and `astype`."""

    values: Int8[Array | jax.ShapeDtypeStruct, "rows columns"]
    scale: Float[Array | jax.ShapeDtypeStruct, " columns"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> Any:
        return self.scale.dtype

    def __getitem__(self, index: Any) -> "Int8Matrix":
        if index is not Ellipsis:
            raise IndexError(f"an Int8Matrix has no part {index!r}; astype makes an array of it")
        return self

    def astype(self, dtype: DTypeLike) -> Float[Array, "rows columns"]:
        """The matrix as an array."""
        return (self.values.astype(jnp.float32) * self.scale[None]).astype(dtype)


def to_int8(matrix: Float[Array, "rows columns"]) -> Int8Matrix:
    """The nearest matrix in 8 bits; a column of zeros stays so."""
    matrix = matrix.astype(jnp.float32)
    largest = jnp.max(jnp.abs(matrix), axis=0)
    scale = jnp.where(largest > 0, largest, 1) / 127
    return Int8Matrix(jnp.round(matrix / scale[None]).astype(jnp.int8), scale)


def int8_matmul(x: Float[Array, "*batch rows"], matrix: Int8Matrix) -> Float[Array, "*batch columns"]:
    """x W in x's dtype. The product reads the 8 bits; sums are scaled in float32."""
    sums = product("...i,io->...o", x, matrix.values.astype(x.dtype))
    return (sums * matrix.scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
