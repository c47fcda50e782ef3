"""Query, key and value of every head as one array.

For each key head in turn: the query heads that share it, the key, the value. So one matrix projects them all, and an
equal shard of its columns is a set of whole heads (Shoeybi et al. 2019, section 3).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def fuse_heads(parts: Sequence[Shaped[Array, "*batch _"]], groups: int) -> Shaped[Array, "*batch features"]:
    """Concatenates the parts group by group; every group has an equal share of each part's features."""
    by_group = [part.reshape(*part.shape[:-1], groups, -1) for part in parts]
    joined = jnp.concatenate(by_group, axis=-1)
    return joined.reshape(*joined.shape[:-2], -1)


def split_heads(
    x: Shaped[Array, "*batch features"], counts: Sequence[int], head_dim: int
) -> list[Shaped[Array, "*batch _ {head_dim}"]]:
    """Each part's heads; counts: how many heads of each part a group has."""
    # Split, not sliced: the gradient of a split is one concatenation, that of slices a sum of padded copies.
    grid = x.reshape(*x.shape[:-1], -1, sum(counts), head_dim)
    parts = jnp.split(grid, [sum(counts[:number]) for number in range(1, len(counts))], axis=-2)
    return [part.reshape(*x.shape[:-1], -1, head_dim) for part in parts]
