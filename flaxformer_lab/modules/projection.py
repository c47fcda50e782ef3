"""Maps over features that own parameters, from dense, which mixes all of them, to diagonal, which mixes none.

Between them: block-diagonal, low-rank and Monarch maps. Identity, Hadamard and Fourier own nothing. At the start each
keeps the variance of features that are independent.

Every parameter names its axes, so that a mesh of devices knows what to shard: width (features of a token), heads,
hidden. An axis named None is not sharded.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional import linear, structured
from flaxformer_lab.functional.heads import fuse_heads
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import Axes, matmul, read


class Fans(NamedTuple):
    """How many features each dense block of a map sums, and how many sums it makes of them."""

    fan_in: int
    fan_out: int


def normal(rngs: Rngs, shape: tuple[int, ...], fan_in: int, axes: Axes, fan_out: int | None = None) -> nnx.Param:
    """A parameter drawn from N(0, 1 / fan_in), truncated at two standard deviations (LeCun et al. 1998).

    fan_out: of a map, whose initial weights and rate `optimizer.scaling` may scale.
    """
    draw = jax.nn.initializers.truncated_normal(stddev=fan_in**-0.5 / 0.87962566)
    fans = {} if fan_out is None else {"fans": Fans(fan_in, fan_out)}
    return nnx.Param(rngs.draw(draw, shape), axes=axes, **fans)


def uniform(rngs: Rngs, shape: tuple[int, ...], limit: float, axes: Axes) -> nnx.Param:
    """A parameter drawn from U(-limit, limit)."""
    draw = functools.partial(jax.random.uniform, minval=-limit, maxval=limit)
    return nnx.Param(rngs.draw(draw, shape), axes=axes)


def zeros(shape: tuple[int, ...], axes: Axes) -> nnx.Param:
    """A parameter that starts at 0."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


def ones(shape: tuple[int, ...], axes: Axes) -> nnx.Param:
    """A parameter that starts at 1."""
    return nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)


class Projection(nnx.Module):
    """A map from `features_in` to `features_out`, which are `parts` equal maps side by side (query, key, value).

    groups: the parts are interleaved group by group, as `fuse_heads` does.
    blocks: of the block-diagonal factors. rank: of each part. mixes_features(block_size): whether one feature can reach
    another. A subclass takes what it needs, as keywords.
    """

    @staticmethod
    def mixes_features(block_size: int) -> bool:
        """Whether one feature can reach another, where `block_size` features share a block."""
        del block_size
        return True


class Dense(Projection):
    """x W + b."""

    def __init__(
        self, features_in: int, features_out: int, *, axes: Axes, parts: int = 1, bias: bool, rngs: Rngs, **_: int
    ):
        self.kernel = normal(rngs, (features_in, features_out), features_in, axes, features_out // parts)
        self.bias = zeros((features_out,), axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return linear.add_bias(matmul(x, self.kernel), read(self.bias))


class Diagonal(Projection):
    """x_c w_c + b_c in each part."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        axes: Axes,
        groups: int = 1,
        bias: bool,
        rngs: Rngs,
        **_: int,
    ):
        self._repeats, self._groups = features_out // features_in, groups
        self.scale = normal(rngs, (features_out,), 1, axes[1:], 1)
        self.bias = zeros((features_out,), axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return linear.diagonal(repeated(x, self._repeats, self._groups), read(self.scale), read(self.bias))

    @staticmethod
    def mixes_features(block_size: int) -> bool:
        del block_size
        return False


class Identity(Projection):
    """x in each part."""

    def __init__(self, features_in: int, features_out: int, *, groups: int = 1, **_: Any):
        self._repeats, self._groups = features_out // features_in, groups

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return repeated(x, self._repeats, self._groups)

    @staticmethod
    def mixes_features(block_size: int) -> bool:
        del block_size
        return False


class Hadamard(Identity):
    """x H in each part: every feature mixes with all others, and nothing is learned."""

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return repeated(structured.hadamard(x), self._repeats, self._groups)

    @staticmethod
    def mixes_features(block_size: int) -> bool:
        del block_size
        return True


class Fourier(Identity):
    """x F in each part, F the discrete Fourier transform in real numbers: a fixed dense map of any size."""

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return repeated(structured.fourier(x), self._repeats, self._groups)

    @staticmethod
    def mixes_features(block_size: int) -> bool:
        del block_size
        return True


class Block(Projection):
    """x diag(W_1, ..., W_blocks) + b: features mix within their block alone."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        axes: Axes,
        blocks: int,
        parts: int = 1,
        groups: int = 1,
        bias: bool,
        rngs: Rngs,
        **_: int,
    ):
        self._parts, self._groups = parts, groups
        shape = blocks, features_in // blocks, features_out // blocks
        self.kernel = normal(rngs, shape, shape[1], (_whole(axes), None, None), shape[2] // parts)
        self.bias = zeros((features_out,), axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        y = structured.block_diagonal(x, read(self.kernel), self._parts)
        return linear.add_bias(interleaved(y, self._parts, self._groups), read(self.bias))

    @staticmethod
    def mixes_features(block_size: int) -> bool:
        return block_size > 1


class Monarch(Projection):
    """Two block-diagonal maps with a shuffle between, plus b (Dao et al. 2022)."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        axes: Axes,
        blocks: int,
        parts: int = 1,
        groups: int = 1,
        bias: bool,
        rngs: Rngs,
        **_: int,
    ):
        self._parts, self._groups = parts, groups
        part_out, block_in = features_out // parts, features_in // blocks
        middle = min(features_in, part_out) // blocks
        shape = parts * middle, blocks, part_out // middle
        self.first = Factor(rngs, (blocks, block_in, parts * middle), (_whole(axes), None, None), middle)
        self.second = Factor(rngs, shape, (None, _whole(axes), None), shape[2])
        self.bias = zeros((features_out,), axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        y = structured.monarch(x, read(self.first.kernel), read(self.second.kernel), self._parts)
        return linear.add_bias(interleaved(y, self._parts, self._groups), read(self.bias))


class LowRank(Projection):
    """x U V + b: all features meet, in `rank` sums of them. Each part has sums of its own."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        axes: Axes,
        rank: int,
        parts: int = 1,
        groups: int = 1,
        bias: bool,
        rngs: Rngs,
        **_: int,
    ):
        self._parts, self._groups = parts, groups
        self.down = Dense(features_in, parts * rank, axes=(axes[0], None), parts=parts, bias=False, rngs=rngs)
        shape = parts, rank, features_out // parts
        self.up = Factor(rngs, shape, (None, None, axes[1]), shape[2])
        self.bias = zeros((features_out,), axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        y = structured.block_diagonal(self.down(x), read(self.up.kernel))
        return linear.add_bias(interleaved(y, self._parts, self._groups), read(self.bias))


class Factor(nnx.Module):
    """The kernel [blocks, block in, block out] of one of the factors of a map."""

    def __init__(self, rngs: Rngs, shape: tuple[int, int, int], axes: Axes, fan_out: int):
        self.kernel = normal(rngs, shape, shape[1], axes, fan_out)


def _whole(axes: Axes) -> str | None:
    """What the axis of the blocks is called: where the width is sharded it is they that are, each as a whole."""
    return "width" if "width" in axes else None


PROJECTIONS = {
    "dense": Dense,
    "diagonal": Diagonal,
    "block": Block,
    "low_rank": LowRank,
    "monarch": Monarch,
    "hadamard": Hadamard,
    "fourier": Fourier,
    "identity": Identity,
    "off": Identity,
}


def interleaved(y: Float[Array, "*batch features"], parts: int, groups: int) -> Float[Array, "*batch features"]:
    """Parts that stand one after another, group by group instead."""
    return y if parts == 1 else fuse_heads(jnp.split(y, parts, axis=-1), groups)


def repeated(x: Float[Array, "*batch features"], repeats: int, groups: int) -> Float[Array, "*batch features_out"]:
    """The features in `groups` equal parts, each part repeated `repeats` times before the next one."""
    return x if repeats == 1 else fuse_heads([x] * repeats, groups)
