"""Tokens in blocks of equal size, for forms of attention that go block by block."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def split_blocks(x: Array, size: int) -> Array:
    """[batch, tokens, heads, features] as [blocks, batch, heads, size, features]; the last one filled up with zeros."""
    batch, tokens, heads, features = x.shape
    blocks = math.ceil(tokens / size)
    x = jnp.pad(x, ((0, 0), (0, blocks * size - tokens), (0, 0), (0, 0)))
    return x.reshape(batch, blocks, size, heads, features).transpose(1, 0, 3, 2, 4)


def join_blocks(
    x: Float[Array, "blocks batch heads size features"], tokens: int
) -> Float[Array, "batch {tokens} heads features"]:
    """What `split_blocks` split, without what filled it up."""
    blocks, batch, heads, size, features = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, blocks * size, heads, features)[:, :tokens]


def product(indices: str, *factors: Array) -> Float[Array, "..."]:
    """An einsum whose sums are float32, whatever its factors are."""
    return jnp.einsum(indices, *factors, preferred_element_type=jnp.float32)
