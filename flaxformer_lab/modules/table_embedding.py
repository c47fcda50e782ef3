"""A table's rows as tokens: encodings of numbers, the row as one token, a class token, and members of an ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import add_bias, broadcast_parameter
from flaxformer_lab.functional.number_encoding import periodic, piecewise_linear
from flaxformer_lab.functional.structured import block_matmul
from flaxformer_lab.modules.projection import normal, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import Axes, read

Tokens = Float[Array, "batch columns width"]


class PiecewiseEmbedding(nnx.Module):
    """A linear map of its own for each column's bins, from edges [columns, bins + 1] (Gorishniy et al. 2022).

    The maps' axes are not sharded by name: they are small.
    """

    def __init__(self, edges: Float[np.ndarray, "columns edges"], width: int, *, dtype: str, rngs: Rngs):
        self._dtype = jnp.dtype(dtype)
        self._edges = tuple(map(tuple, edges.tolist()))
        columns, bins = edges.shape[0], edges.shape[1] - 1
        self.directions = normal(rngs, (columns, bins, width), bins, (None, None, "width"))
        self.offsets = normal(rngs, (columns, width), 1, (None, "width"))

    def __call__(self, x: Float[Array, "batch columns"]) -> Tokens:
        encoded = piecewise_linear(x.astype(jnp.float32), jnp.array(self._edges, jnp.float32))
        return _map_each(encoded, self.directions, self.offsets, self._dtype)


class PeriodicEmbedding(nnx.Module):
    """Waves of learned frequencies, a linear map of its own for each column, and ReLU (Gorishniy et al. 2022, PLR)."""

    def __init__(self, columns: int, frequencies: int, scale: float, width: int, *, dtype: str, rngs: Rngs):
        self._dtype = jnp.dtype(dtype)
        frequencies_at_first = scale * rngs.draw(jax.random.normal, (columns, frequencies))
        self.frequencies = nnx.Param(frequencies_at_first, axes=(None, None))
        self.directions = normal(rngs, (columns, 2 * frequencies, width), frequencies, (None, None, "width"))
        self.offsets = normal(rngs, (columns, width), 1, (None, "width"))

    def __call__(self, x: Float[Array, "batch columns"]) -> Tokens:
        encoded = periodic(x.astype(jnp.float32), read(self.frequencies))
        return jax.nn.relu(_map_each(encoded, self.directions, self.offsets, self._dtype))


def _map_each(
    x: Float[Array, "batch columns features"], maps: nnx.Param, offsets: nnx.Param, dtype: jnp.dtype
) -> Tokens:
    y = block_matmul(x.astype(dtype), read(maps))
    return y + broadcast_parameter(read(offsets), y.shape, dtype)


class TableTokens(nnx.Module):
    """What becomes of the columns' vectors, which `parts` makes of a row.

    as_row: one token, their sum, of the same variance: the first layer of an MLP, which is linear in each column's
    features. has_class_token: one more token is put before them. members: copies of each example, side by side on the
    first axis, whose features are weighed by weights of their own, 1 or -1 at the start (Gorishniy et al. 2024,
    TabM-mini).
    """

    def __init__(self, parts: nnx.Module, *, as_row: bool, has_class_token: bool, members: int, width: int, rngs: Rngs):
        self._as_row = as_row
        self.parts = parts
        self.class_token = normal(rngs, (width,), 1, ("width",)) if has_class_token else None
        self.scales = _signs(rngs, members, width) if members > 1 else None

    def __call__(self, inputs: Array | dict[str, Array]) -> Float[Array, "sequences tokens width"]:
        x = self.parts(inputs)
        if self._as_row:
            x = jnp.sum(x, axis=1, keepdims=True) / np.sqrt(x.shape[1]).astype(x.dtype)
        if self.class_token is not None:
            first = broadcast_parameter(read(self.class_token), (x.shape[0], 1, x.shape[2]), x.dtype)
            x = jnp.concatenate([first, x], axis=1)
        if self.scales is None:
            return x
        scales = broadcast_parameter(read(self.scales), (*x.shape[:2], *self.scales.shape), x.dtype)
        return jnp.swapaxes(x[:, :, None] * scales, 1, 2).reshape(-1, *x.shape[1:])


def _signs(rngs: Rngs, members: int, width: int) -> nnx.Param:
    return nnx.Param(rngs.draw(jax.random.rademacher, (members, width)), axes=(None, "width"))


class MemberHead(nnx.Module):
    """A dense head for each member: [batch x members, width] becomes [batch, members, outputs]."""

    def __init__(self, members: int, width: int, outputs: int, *, bias: bool, rngs: Rngs):
        axes: Axes = (None, "width", None)
        self.kernels = normal(rngs, (members, width, outputs), width, axes)
        self.biases = zeros((members, outputs), (None, None)) if bias else None

    def __call__(self, x: Float[Array, "sequences width"]) -> Float[Array, "batch members outputs"]:
        members = x.reshape(-1, self.kernels.shape[0], x.shape[-1])
        return add_bias(block_matmul(members, read(self.kernels)), read(self.biases))
