"""Linear maps between diagonal and dense: block-diagonal, Monarch, Hadamard, Fourier. A low-rank map is two dense ones.

As in `functional/linear.py`, parameters are cast to the input's dtype and their gradients are sums in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flaxformer_lab.functional.products import einsum, product

Blocks = Float[Array, "*batch blocks block_in"]


def block_diagonal(
    x: Float[Array, "*batch features_in"], kernel: Float[Array, "blocks block_in block_out"], parts: int = 1
) -> Float[Array, "*batch features_out"]:
    """Features in blocks side by side, each mapped by a matrix of its own: nothing crosses from block to block.

    parts: the kernel holds so many maps, whose outputs come one after another.
    """
    y = block_matmul(_split(x, len(kernel)), kernel)
    if parts > 1:
        y = jnp.swapaxes(y.reshape(*y.shape[:-1], parts, -1), -2, -3)
    return y.reshape(*x.shape[:-1], -1)


def monarch(
    x: Float[Array, "*batch features_in"],
    first: Float[Array, "blocks block_in middle"],
    second: Float[Array, "middle blocks block_out"],
    parts: int = 1,
) -> Float[Array, "*batch features_out"]:
    """P L P' R x (Dao et al. 2022, eq. 1): block-diagonal maps R and L with a shuffle between; P orders the outputs.

    L's k-th block takes the k-th feature of each of R's blocks, so every output depends on every input.
    parts: the kernels hold so many maps, along `middle`, whose outputs come one after another.
    """
    middle = block_matmul(_split(x, len(first)), first)
    y = block_matmul(jnp.swapaxes(middle, -1, -2), second)
    by_part = y.reshape(*x.shape[:-1], parts, len(second) // parts, -1)
    return jnp.swapaxes(by_part, -1, -2).reshape(*x.shape[:-1], -1)


def hadamard(x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """x H, the orthonormal Walsh-Hadamard matrix: each output is a sum of all inputs with signs.

    As H of 2^a x 2^b features is a Kronecker product, it takes 2^(a+b) (2^a + 2^b) products instead of 2^(2(a+b)).
    """
    features = x.shape[-1]
    rows = 2 ** (features.bit_length() // 2)
    left, right = (_hadamard_matrix(size, x.dtype) for size in (rows, features // rows))
    return einsum("...rc,cb,ra->...ab", _split(x, rows), right, left).reshape(x.shape)


def fourier(x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """x F, the orthonormal matrix of `fourier_matrix`."""
    return einsum("...f,fg->...g", x, fourier_matrix(x.shape[-1], x.dtype))


def fourier_matrix(size: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "{size} {size}"]:
    """The discrete Fourier transform in real numbers (Hartley 1942): entry i, j is cos + sin of 2 pi i j / size.

    The real part alone, as FNet takes it over tokens and features together (Lee-Thorp et al. 2022, eq. 3), loses half
    of what it is given where it is taken over one of them. This form is symmetric and its own inverse.
    """
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    return jnp.asarray((np.cos(angle) + np.sin(angle)) * size**-0.5, dtype)


def _hadamard_matrix(size: int, dtype: DTypeLike) -> Float[Array, "size size"]:
    """Entry i, j is negative where i and j share an odd number of binary digits (Sylvester's order)."""
    scale = size**-0.5
    return jnp.asarray([[scale * (-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)], dtype)


def block_matmul(x: Blocks, kernel: Float[Array, "blocks block_in block_out"]) -> Float[Array, "*batch blocks _"]:
    """Each block by its own matrix, as one batched product."""
    return einsum(_FORWARD, x, kernel) if x.dtype == kernel.dtype else _block_matmul(x, kernel)


_FORWARD, _TO_INPUT = "...ki,kio->...ko", "...ko,kio->...ki"


@jax.custom_vjp
def _block_matmul(x: Blocks, kernel: Array) -> Array:
    return einsum(_FORWARD, x, kernel.astype(x.dtype))


def _block_matmul_forward(x, kernel):
    return _block_matmul(x, kernel), (x, kernel)


def _block_matmul_backward(residuals, gradient):
    x, kernel = residuals
    flat = (part.reshape(-1, *part.shape[-2:]) for part in (x, gradient))  # an ellipsis cannot be summed over
    return einsum(_TO_INPUT, gradient, kernel.astype(x.dtype)), product("nki,nko->kio", *flat)


_block_matmul.defvjp(_block_matmul_forward, _block_matmul_backward)


def _split(x: Float[Array, "*batch features"], blocks: int) -> Blocks:
    return x.reshape(*x.shape[:-1], blocks, -1)
