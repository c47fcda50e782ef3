"""Maps over features that own parameters: dense, diagonal (no feature mixing), identity (no parameters).

Every parameter names its axes, so that a mesh of devices knows what to shard: width (features of a token), heads,
hidden. An axis named None is not sharded.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional import linear
from flaxformer_lab.functional.heads import fuse_heads
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import Axes, matmul, read


def normal(rngs: Rngs, shape: tuple[int, ...], fan_in: int, axes: Axes) -> nnx.Param:
    """A parameter drawn from N(0, 1 / fan_in), truncated at two standard deviations (LeCun et al. 1998)."""
    draw = jax.nn.initializers.truncated_normal(stddev=fan_in**-0.5 / 0.87962566)
    return nnx.Param(draw(rngs.params(), shape, jnp.float32), axes=axes)


def zeros(shape: tuple[int, ...], axes: Axes) -> nnx.Param:
    """A parameter that starts at 0."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


def ones(shape: tuple[int, ...], axes: Axes) -> nnx.Param:
    """A parameter that starts at 1."""
    return nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)


class Dense(nnx.Module):
    """x W + b."""

    def __init__(self, features_in: int, features_out: int, *, axes: Axes, groups: int = 1, bias: bool, rngs: Rngs):
        del groups
        self.kernel = normal(rngs, (features_in, features_out), features_in, axes)
        self.bias = zeros((features_out,), axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return linear.add_bias(matmul(x, self.kernel), read(self.bias))


class Diagonal(nnx.Module):
    """x_c w_c + b_c, repeated to `features_out` features, group by group (see `repeated`)."""

    def __init__(self, features_in: int, features_out: int, *, axes: Axes, groups: int = 1, bias: bool, rngs: Rngs):
        self._repeats, self._groups = features_out // features_in, groups
        self.scale = normal(rngs, (features_out,), 1, axes[1:])
        self.bias = zeros((features_out,), axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return linear.diagonal(repeated(x, self._repeats, self._groups), read(self.scale), read(self.bias))


class Identity(nnx.Module):
    """x, repeated to `features_out` features, group by group (see `repeated`)."""

    def __init__(self, features_in: int, features_out: int, *, axes: Axes, groups: int = 1, bias: bool, rngs: Rngs):
        del axes, bias, rngs
        self._repeats, self._groups = features_out // features_in, groups

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return repeated(x, self._repeats, self._groups)


PROJECTIONS = {"dense": Dense, "diagonal": Diagonal, "identity": Identity, "off": Identity}


def repeated(x: Float[Array, "*batch features"], repeats: int, groups: int) -> Float[Array, "*batch features_out"]:
    """The features in `groups` equal parts, each part repeated `repeats` times before the next one."""
    return x if repeats == 1 else fuse_heads([x] * repeats, groups)
