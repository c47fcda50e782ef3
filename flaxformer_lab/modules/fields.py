"""The fields of a record as vectors, their crosses, and the sum of what they say."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.functional.linear import add_bias, broadcast_parameter
from flaxformer_lab.modules.projection import Dense, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import Axes, read, take_sharded_rows

ROW_MULTIPLE = 8  # tables have a multiple of so many rows, so that devices divide them equally
Inputs = Any  # numbers [batch, columns], or {"columns": numbers, "categories": levels [batch, fields]}


class FieldEmbedding(nnx.Module):
    """A vector for each level of each field; of a number, its multiple of the field's vector (Rendle 2010).

    levels: how many each category has; level 0 stands for all that training has not seen. One table has all rows, which
    the mesh axis `tensor` divides.
    buckets: the rows of a table into which levels are hashed (Weinberger et al. 2009); None: each level has its own.
    crosses: every pair of categories is one more field, whose levels are hashed into so many rows; 0: none.
    scale: standard deviation of the first vectors.
    """

    def __init__(
        self,
        columns: int,
        levels: Sequence[int],
        width: int,
        *,
        buckets: int | None = None,
        crosses: int = 0,
        scale: float,
        dtype: str,
        rngs: Rngs,
    ):
        self._dtype, self._buckets, self._crosses = jnp.dtype(dtype), buckets, crosses
        self._first = tuple(itertools.accumulate(levels[:-1], initial=0)) if levels else ()
        self._pairs = tuple(itertools.combinations(range(len(levels)), 2)) if crosses else ()
        self.fields = columns + len(levels) + len(self._pairs)
        rows = (buckets or sum(levels)) if levels else 0
        self.numbers = _normal(rngs, (columns, width), scale, (None, "width")) if columns else None
        self.table = _normal(rngs, (_rounded_up(rows), width), scale, ("rows", None)) if levels else None
        self.crossed = _normal(rngs, (_rounded_up(crosses), width), scale, ("rows", None)) if self._pairs else None

    def __call__(self, inputs: Inputs) -> Float[Array, "batch fields width"]:
        inputs = inputs if isinstance(inputs, Mapping) else {"columns": inputs}
        vectors = []
        if self.numbers is not None:
            columns = inputs["columns"].astype(self._dtype)[:, :, None]
            shape = (*columns.shape[:2], self.numbers.shape[1])
            vectors.append(columns * broadcast_parameter(read(self.numbers), shape, self._dtype))
        if self.table is not None:
            levels = inputs["categories"]
            vectors.append(take_sharded_rows(self.table, self._rows(levels), self._dtype))
            if self.crossed is not None:
                vectors.append(take_sharded_rows(self.crossed, self._crossed_rows(levels), self._dtype))
        return jnp.concatenate(vectors, axis=1)

    def _rows(self, levels: Int[Array, "batch fields"]) -> Int[Array, "batch fields"]:
        if self._buckets is None:
            return levels + np.array(self._first, np.int32)[None]
        field = jnp.arange(levels.shape[1], dtype=jnp.uint32)[None]
        return bucket_of(levels.astype(jnp.uint32), field, self._buckets)

    def _crossed_rows(self, levels: Int[Array, "batch fields"]) -> Int[Array, "batch pairs"]:
        one, other = (levels[:, np.array(side)].astype(jnp.uint32) for side in zip(*self._pairs, strict=True))
        pair = jnp.arange(one.shape[1], dtype=jnp.uint32)[None]
        return bucket_of(one * jnp.uint32(2**16 + 1) + other, pair, self._crosses)


def bucket_of(value: Array, field: Array, buckets: int) -> Int[Array, "..."]:
    """A bucket for each value of each field, by two rounds of MurmurHash3's finaliser."""
    mixed = _mix(_mix(value + jnp.uint32(1)) ^ (field * jnp.uint32(0x9E3779B9)))
    return (mixed % jnp.uint32(buckets)).astype(jnp.int32)


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _normal(rngs: Rngs, shape: tuple[int, int], scale: float, axes: Axes) -> nnx.Param:
    return nnx.Param(rngs.draw(jax.nn.initializers.normal(scale), shape), axes=axes)


def _rounded_up(rows: int) -> int:
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


class FieldHead(nnx.Module):
    """One logit: a bias, each field's own weight, what the body makes of the fields, and a perceptron beside it.

    readout: the `sum` of the body's outputs, or a weighted one of all (`flat`) or of their mean over fields (`mean`).
    own: the weights of the fields' levels, vectors of one feature; None leaves them out. deep: hidden units of the
    perceptron on all fields' vectors side by side (Guo et al. 2017, DeepFM); none leaves it out.
    """

    def __init__(
        self,
        fields: int,
        width: int,
        *,
        readout: str,
        own: FieldEmbedding | None,
        deep: Sequence[int],
        bias: bool = True,
        rngs: Rngs,
    ):
        self._readout = readout
        self.bias, self.own = zeros((1,), (None,)) if bias else None, own
        read_features = {"sum": 0, "flat": fields * width, "mean": width}[readout]
        self.weights = Dense(read_features, 1, axes=(None, None), bias=False, rngs=rngs) if read_features else None
        sizes = list(itertools.pairwise([fields * width, *deep])) if deep else []
        self.layers = nnx.List([Dense(*size, axes=(None, "hidden"), bias=bias, rngs=rngs) for size in sizes])
        self.deep = Dense(deep[-1], 1, axes=(None, None), bias=False, rngs=rngs) if deep else None

    def __call__(
        self, x: Float[Array, "batch tokens features"], vectors: Float[Array, "batch fields width"], inputs: Inputs
    ) -> Float[Array, "batch 1"]:
        batch = x.shape[0]
        if self.weights is None:
            logit = jnp.sum(x, axis=(1, 2))[:, None]
        else:
            logit = self.weights(x.reshape(batch, -1) if self._readout == "flat" else jnp.mean(x, axis=1))
        if self.own is not None:
            logit = logit + jnp.sum(self.own(inputs), axis=1)
        if self.deep is not None:
            hidden = vectors.reshape(batch, -1)
            for layer in self.layers:
                hidden = ACTIVATIONS["relu"](layer(hidden))
            logit = logit + self.deep(hidden)
        return logit if self.bias is None else add_bias(logit, read(self.bias))
