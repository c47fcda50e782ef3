"""Tokens in blocks of equal size, for forms of attention that go block by block."""

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
    """`jax.lax.scan` over blocks of tokens, each cut out when its turn comes, so that no array is copied as a whole.

    function(carry, blocks) -> (carry, blocks): a block of each array, [batch, heads, size, features], the last one
    filled up with zeros; and new blocks, which are joined to arrays [batch, tokens, heads, features]. reverse: the last
    block comes first. Returns the last carry and the new arrays.
    """
    filled = [_filled_up(x, size) for x in arrays]
    tokens, number = arrays[0].shape[1], filled[0].shape[1] // size

    def cut(place):
        return tuple(jnp.swapaxes(jax.lax.dynamic_slice_in_dim(x, place * size, size, 1), 1, 2) for x in filled)

    def step(count, carry):
        state, joined = carry
        place = number - 1 - count if reverse else count
        state, blocks = function(state, cut(place))
        put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, jnp.swapaxes(new, 1, 2), place * size, 1)  # noqa: E731
        return state, jax.tree.map(put, joined, blocks)

    def empty(block):
        batch, heads, _, features = block.shape
        return jnp.zeros((batch, number * size, heads, features), block.dtype)

    shapes = jax.eval_shape(lambda: function(start, cut(0))[1])
    last, joined = jax.lax.fori_loop(0, number, step, (start, jax.tree.map(empty, shapes)))
    return last, jax.tree.map(lambda x: x[:, :tokens], joined)


def split_blocks(x: Array, size: int) -> Array:
    """[batch, tokens, heads, features] as [blocks, batch, heads, size, features]; the last one filled up with zeros."""
    x = _filled_up(x, size)
    batch, tokens, heads, features = x.shape
    return x.reshape(batch, tokens // size, size, heads, features).transpose(1, 0, 3, 2, 4)


def join_blocks(
    x: Float[Array, "blocks batch heads size features"], tokens: int
) -> Float[Array, "batch {tokens} heads features"]:
    """What `split_blocks` split, without what filled it up."""
    blocks, batch, heads, size, features = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, blocks * size, heads, features)[:, :tokens]


def _filled_up(x: Array, size: int) -> Array:
    """With tokens of zeros behind the last, so that blocks of this size hold all."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
