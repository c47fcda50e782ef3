"""From raw inputs to token vectors."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxformer_lab.functional.linear import broadcast_parameter
from flaxformer_lab.modules.projection import PROJECTIONS, Dense, normal
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read, take_rows


class TokenEmbedding(nnx.Module):
    """A learned vector for each symbol of a vocabulary; NaN for a symbol outside it.

    `PureNetwork.check_symbols` refuses such symbols where their values are known.
    """

    def __init__(self, vocabulary: int, width: int, *, dtype: str, rngs: Rngs):
        self._dtype = jnp.dtype(dtype)
        self.table = normal(rngs, (vocabulary, width), 1, (None, "width"))

    @property
    def vocabulary(self) -> int:
        """How many symbols there are, counted from 0."""
        return self.table.shape[0]

    def __call__(self, symbols: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
        return take_rows(self.table, symbols, self._dtype)


class FeatureEmbedding(nnx.Module):
    """Tokens that are vectors already, mapped to the model's width: `dense`, or left as they are by `identity`."""

    def __init__(self, kind: str, features: int, width: int, *, bias: bool, dtype: str, rngs: Rngs):
        self._dtype = jnp.dtype(dtype)
        self.projection = PROJECTIONS[kind](features, width, axes=(None, "width"), bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens features"]) -> Float[Array, "batch tokens width"]:
        return self.projection(x.astype(self._dtype))


class ColumnEmbedding(nnx.Module):
    """A table's numbers: each column has a direction and an offset of its own (Gorishniy et al. 2021, section 3.1)."""

    def __init__(self, columns: int, width: int, *, dtype: str, rngs: Rngs):
        self._dtype = jnp.dtype(dtype)
        self.directions = normal(rngs, (columns, width), 1, (None, "width"))
        self.offsets = normal(rngs, (columns, width), 1, (None, "width"))

    def __call__(self, x: Float[Array, "batch columns"]) -> Float[Array, "batch columns width"]:
        shape = (x.shape[0], *self.offsets.shape)
        directions, offsets = (
            broadcast_parameter(read(table), shape, self._dtype) for table in (self.directions, self.offsets)
        )
        return x.astype(self._dtype)[:, :, None] * directions + offsets


class CategoryEmbedding(nnx.Module):
    """A table's categories: a learned vector for each level of each column, and an offset for each column.

    Level 0 stands for all that training has not seen: its vector is 0, so its token is the column's offset.
    levels: how many each column has, level 0 included.
    """

    def __init__(self, levels: Sequence[int], width: int, *, dtype: str, rngs: Rngs):
        self._dtype = jnp.dtype(dtype)
        self._first = tuple(itertools.accumulate(levels[:-1], initial=0))
        self.vectors = normal(rngs, (sum(levels), width), 1, (None, "width"))
        self.offsets = normal(rngs, (len(levels), width), 1, (None, "width"))

    def __call__(self, x: Int[Array, "batch columns"]) -> Float[Array, "batch columns width"]:
        vectors = take_rows(self.vectors, x + np.array(self._first, np.int32)[None], self._dtype)
        offsets = broadcast_parameter(read(self.offsets), vectors.shape, self._dtype)
        return jnp.where(x[:, :, None] > 0, vectors, 0) + offsets


class RowEmbedding(nnx.Module):
    """A row of numbers and categories, {"columns": ..., "categories": ...}; the numbers are the first tokens."""

    def __init__(self, columns: int, levels: Sequence[int], width: int, *, dtype: str, rngs: Rngs):
        self.columns = ColumnEmbedding(columns, width, dtype=dtype, rngs=rngs) if columns else None
        self.categories = CategoryEmbedding(levels, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: dict[str, Array]) -> Float[Array, "batch columns width"]:
        tokens = [self.categories(x["categories"])]
        if self.columns is not None:
            tokens.insert(0, self.columns(x["columns"]))
        return jnp.concatenate(tokens, axis=1)


class PatchEmbedding(nnx.Module):
    """Square patches of an image, each flattened and mapped to a token (Dosovitskiy et al. 2021, eq. 1)."""

    def __init__(
        self,
        patch_size: int,
        channels: int,
        width: int,
        *,
        bias: bool,
        class_token: bool,
        dtype: str,
        rngs: Rngs,
    ):
        self._patch_size, self._dtype = patch_size, jnp.dtype(dtype)
        self.projection = Dense(patch_size * patch_size * channels, width, axes=(None, "width"), bias=bias, rngs=rngs)
        self.class_token = normal(rngs, (width,), 1, ("width",)) if class_token else None

    def __call__(self, images: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch tokens width"]:
        tokens = self.projection(patches(images.astype(self._dtype), self._patch_size))
        return _with_class_token(tokens, self.class_token)


class StemEmbedding(nnx.Module):
    """Images to tokens by a stem, [batch, rows, columns, features] from and to, whose positions are the tokens."""

    def __init__(self, stem: nnx.Module, width: int, *, class_token: bool, dtype: str, rngs: Rngs):
        self._dtype, self.stem = jnp.dtype(dtype), stem
        self.class_token = normal(rngs, (width,), 1, ("width",)) if class_token else None

    def __call__(self, images: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch tokens width"]:
        x = self.stem(images.astype(self._dtype))
        return _with_class_token(x.reshape(x.shape[0], -1, x.shape[-1]), self.class_token)


def _with_class_token(
    tokens: Float[Array, "batch tokens width"], class_token: nnx.Param | None
) -> Float[Array, "batch *tokens width"]:
    if class_token is None:
        return tokens
    first = broadcast_parameter(read(class_token), (tokens.shape[0], 1, tokens.shape[2]), tokens.dtype)
    return jnp.concatenate([first, tokens], axis=1)


def patches(images: Float[Array, "batch rows columns channels"], size: int) -> Float[Array, "batch tokens features"]:
    """Cuts images into size x size patches, row by row; a patch's features run row, column, channel."""
    batch, rows, columns, channels = images.shape
    grid = images.reshape(batch, rows // size, size, columns // size, size, channels)
    return jax.lax.transpose(grid, (0, 1, 3, 2, 4, 5)).reshape(batch, -1, size * size * channels)
