"""Query, key and value of every head as one array.

For each key head in turn: the query heads that share it, the key, the value. So one matrix projects them all, and an
equal shard of its columns is a set of whole heads (Shoeybi et al. 2019, section 3).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Shaped


class HeadLayout(NamedTuple):
    """Where the heads of some parts (query, key, value) are: `groups` times counts[i] heads of each part i in turn."""

    groups: int
    counts: tuple[int, ...]
    head_dim: int

    @property
    def features(self) -> int:
        """Features of all heads."""
        return self.groups * sum(self.counts) * self.head_dim

    def fuse(self, x: Shaped[Array, "*batch features"]) -> Shaped[Array, "*batch features"]:
        """Features in this layout, from all heads of the first part, then all of the second, and so on."""
        ends = itertools.accumulate(self.groups * count * self.head_dim for count in self.counts[:-1])
        return fuse_heads(jnp.split(x, list(ends), axis=-1), self.groups)

    def split(self, x: Shaped[Array, "*batch features"]) -> list[Shaped[Array, "*batch _ head_dim"]]:
        """The heads of each part."""
        # Split, not sliced: the gradient of a split is one concatenation, that of slices a sum of padded copies.
        grid = x.reshape(*x.shape[:-1], self.groups, sum(self.counts), self.head_dim)
        parts = jnp.split(grid, list(itertools.accumulate(self.counts[:-1])), axis=-2)
        return [part.reshape(*x.shape[:-1], -1, self.head_dim) for part in parts]


def fuse_heads(parts: Sequence[Shaped[Array, "*batch _"]], groups: int) -> Shaped[Array, "*batch features"]:
    """Concatenates the parts group by group; every group has an equal share of each part's features."""
    by_group = [part.reshape(*part.shape[:-1], groups, -1) for part in parts]
    joined = jnp.concatenate(by_group, axis=-1)
    return joined.reshape(*joined.shape[:-2], -1)
