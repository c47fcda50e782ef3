"""Maps over features that own parameters: dense, diagonal (no feature mixing), identity (no parameters)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional import linear
from flaxformer_lab.functional.heads import fuse_heads
from flaxformer_lab.modules.rngs import Rngs


def normal(rngs: Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """A parameter drawn from N(0, 1 / fan_in), truncated at two standard deviations (LeCun et al. 1998)."""
    draw = jax.nn.initializers.truncated_normal(stddev=fan_in**-0.5 / 0.87962566)
    return nnx.Param(draw(rngs.params(), shape, jnp.float32))


def zeros(shape: tuple[int, ...]) -> nnx.Param:
    """A parameter that starts at 0."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def ones(shape: tuple[int, ...]) -> nnx.Param:
    """A parameter that starts at 1."""
    return nnx.Param(jnp.ones(shape, jnp.float32))


class Dense(nnx.Module):
    """x W + b."""

    def __init__(self, features_in: int, features_out: int, *, groups: int = 1, bias: bool, rngs: Rngs):
        del groups
        self.kernel = normal(rngs, (features_in, features_out), features_in)
        self.bias = zeros((features_out,)) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return linear.dense(x, self.kernel[...], read(self.bias))


class Diagonal(nnx.Module):
    """x_c w_c + b_c, as often as `features_out` asks for it, group by group (see `repeated`)."""

    def __init__(self, features_in: int, features_out: int, *, groups: int = 1, bias: bool, rngs: Rngs):
        self._repeats, self._groups = features_out // features_in, groups
        self.scale = normal(rngs, (features_out,), 1)
        self.bias = zeros((features_out,)) if bias else None

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return linear.diagonal(repeated(x, self._repeats, self._groups), self.scale[...], read(self.bias))


class Identity(nnx.Module):
    """x, as often as `features_out` asks for it, group by group (see `repeated`)."""

    def __init__(self, features_in: int, features_out: int, *, groups: int = 1, bias: bool, rngs: Rngs):
        del bias, rngs
        self._repeats, self._groups = features_out // features_in, groups

    def __call__(self, x: Float[Array, "*batch features_in"]) -> Float[Array, "*batch features_out"]:
        return repeated(x, self._repeats, self._groups)


PROJECTIONS = {"dense": Dense, "diagonal": Diagonal, "identity": Identity, "off": Identity}


def repeated(x: Float[Array, "*batch features"], repeats: int, groups: int) -> Float[Array, "*batch features_out"]:
    """Each of `groups` equal shares of the features `repeats` times side by side, share after share."""
    return x if repeats == 1 else fuse_heads([x] * repeats, groups)


def read(parameter: nnx.Param | None) -> Array | None:
    """The array of a parameter that a knob may have removed."""
    return None if parameter is None else parameter[...]
