"""Tokens in blocks of equal size, for blockwise attention."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any  # a pytree of arrays


def scan_blocks(
    function: Callable[[Tree, tuple[Array, ...]], tuple[Tree, Tree]],
    start: Tree,
    arrays: tuple[Float[Array, "batch tokens heads _"], ...],
    size: int,
    *,
    reverse: bool = False,
) -> tuple[Tree, Tree]:
    """`jax.lax.scan` over blocks of tokens that are sliced one at a time, so that no array is copied as a whole.

    function(carry, blocks) -> (carry, new blocks): blocks are one of each array, [batch, heads, size, features], the
    last one padded with zeros; the new blocks are joined to arrays [batch, tokens, heads, features]. reverse: from the
    last block to the first. Returns the last carry and the new arrays.
    """
    padded = [_pad_to_blocks(x, size) for x in arrays]
    tokens, number = arrays[0].shape[1], padded[0].shape[1] // size

    def slice_blocks(index):
        return tuple(jnp.swapaxes(jax.lax.dynamic_slice_in_dim(x, index * size, size, 1), 1, 2) for x in padded)

    def step(iteration, carry):
        state, outputs = carry
        index = number - 1 - iteration if reverse else iteration
        state, blocks = function(state, slice_blocks(index))
        write = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, jnp.swapaxes(new, 1, 2), index * size, 1)  # noqa: E731
        return state, jax.tree.map(write, outputs, blocks)

    def zeros(block):
        batch, heads, _, features = block.shape
        return jnp.zeros((batch, number * size, heads, features), block.dtype)

    shapes = jax.eval_shape(lambda: function(start, slice_blocks(0))[1])
    begin = start, jax.tree.map(zeros, shapes)
    last, outputs = step(0, begin) if number == 1 else jax.lax.fori_loop(0, number, step, begin)
    return last, jax.tree.map(lambda x: x[:, :tokens], outputs)


def split_blocks(x: Array, size: int) -> Array:
    """[batch, tokens, heads, features] as [blocks, batch, heads, size, features]; the last one zero-padded."""
    x = _pad_to_blocks(x, size)
    batch, tokens, heads, features = x.shape
    return x.reshape(batch, tokens // size, size, heads, features).transpose(1, 0, 3, 2, 4)


def join_blocks(
    x: Float[Array, "blocks batch heads size features"], tokens: int
) -> Float[Array, "batch {tokens} heads features"]:
    """Undoes `split_blocks`; drops the padding."""
    blocks, batch, heads, size, features = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, blocks * size, heads, features)[:, :tokens]


def _pad_to_blocks(x: Array, size: int) -> Array:
    """Appends tokens of zeros until blocks of this size fit."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
