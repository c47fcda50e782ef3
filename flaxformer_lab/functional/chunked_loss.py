"""The cross-entropy of a dense map's outputs, chunk by chunk, so that all logits are never in memory at once.

With 50,304 symbols the logits and their gradient take far more memory than the rest of a small model. Here each chunk's
gradient is formed beside its loss, so that nothing is computed twice (FusedLinearCrossEntropy in Hsu et al. 2024, Liger
Kernel).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxformer_lab.functional.linear import add_bias, matmul_input_gradient, matmul_kernel_gradient
from flaxformer_lab.functional.losses import accuracy, cross_entropy
from flaxformer_lab.functional.products import matmul

WHOLE_BYTES = 2**32  # of float32 logits; where there are more, they are computed in chunks
CHUNK_BYTES = 2**30  # each chunk reads and writes the kernel's gradient once, so small ones are slow


class Sums(NamedTuple):
    """Weighted sums over rows: of the losses, and of rows whose largest logit is the target's."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]


class Gradients(NamedTuple):
    """Of the summed loss; float32 for kernel and bias."""

    x: Float[Array, "rows features"]
    kernel: Float[Array, "features classes"]
    bias: Float[Array, " classes"] | None


def choose_chunk(rows: int, classes: int) -> int | None:
    """How many rows of logits to compute at once; None: all of them."""
    if 4 * rows * classes <= WHOLE_BYTES:
        return None
    return 2 ** max(0, (CHUNK_BYTES // (4 * classes)).bit_length() - 1)


def chunked_cross_entropy(
    x: Float[Array, "rows features"],
    kernel: Float[Array, "features classes"],
    bias: Float[Array, " classes"] | None,
    targets: Int[Array, " rows"],
    weights: Float[Array, " rows"],
    *,
    chunk: int,
    gradients: bool,
) -> tuple[Sums, Gradients | None]:
    """`cross_entropy` and `accuracy` of x W + b, by `chunk` rows at a time, and the gradients where they are wanted.

    In x's dtype, as the plain forms: the kernel is cast once. NaN where a target that has a weight is not a class.
    """
    narrow = kernel.astype(x.dtype)

    def of_rows(rows: tuple[Array, Array, Array]) -> tuple[Sums, Gradients | None]:
        x, targets, weights = rows

        def sums(logits: Float[Array, "chunk classes"]) -> tuple[Array, Sums]:
            loss, correct = (each(logits, targets, weights).total for each in (cross_entropy, accuracy))
            return loss, Sums(loss, correct)

        logits = add_bias(matmul(x, narrow), bias)
        if not gradients:
            return sums(logits)[1], None
        towards, found = jax.grad(sums, has_aux=True)(logits)
        of_bias = None if bias is None else jnp.sum(towards.astype(jnp.float32), axis=0)
        of_kernel = matmul_kernel_gradient(x, towards)
        return found, Gradients(matmul_input_gradient(towards, narrow), of_kernel, of_bias)

    def add(total: Any, rows: tuple[Array, Array, Array]) -> tuple[Any, Array | None]:
        found, pulled = of_rows(rows)
        of_x, summed = (None, (found, None)) if pulled is None else (pulled.x, (found, pulled[1:]))
        return jax.tree.map(jnp.add, total, summed), of_x

    inputs, whole = (x, targets, weights), len(x) // chunk * chunk
    of_parameters = (jnp.zeros(kernel.shape), None if bias is None else jnp.zeros(bias.shape)) if gradients else None
    total: Any = Sums(jnp.zeros(()), jnp.zeros(())), of_parameters
    parts = []
    if whole:
        chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, chunk, *leaf.shape[1:]), inputs)
        total, of_x = jax.lax.scan(add, total, chunks)
        parts.append(of_x)
    if whole < len(x):
        total, of_x = add(total, jax.tree.map(lambda leaf: leaf[whole:], inputs))
        parts.append(of_x)
    if not gradients:
        return total[0], None
    of_x = jnp.concatenate([part.reshape(-1, x.shape[1]) for part in parts])
    return total[0], Gradients(of_x, *total[1])
