"""The random keys that parameters are drawn with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

Initializer = Callable[..., Array]  # of a key, a shape and a type, as those of `jax.nn.initializers`


class Rngs:
    """A new key for each parameter that is drawn, one after the other: those of `nnx.Rngs(params=key).params()`.

    NNX keeps the count in a variable, whose update takes longer to trace than the draw of the parameter itself.
    """

    def __init__(self, key: Key[Array, ""] | int):
        self._key = jax.random.key(key) if isinstance(key, int) else key
        self._drawn = 0

    def params(self) -> Key[Array, ""]:
        """The next key."""
        self._drawn += 1
        return jax.random.fold_in(self._key, self._drawn - 1)

    def draw(self, initializer: Initializer, shape: tuple[int, ...]) -> Array:
        """The initial value of a parameter, in float32."""
        return initializer(self.params(), shape, jnp.float32)


class AbstractRngs(Rngs):
    """For a network of which only the shapes are asked, under `nnx.eval_shape`.

    Most of the time that building a network takes goes into tracing what its parameters are drawn from.
    """

    def __init__(self) -> None:
        super().__init__(0)

    def draw(self, initializer: Initializer, shape: tuple[int, ...]) -> Array:
        """Zeros of the parameter's shape."""
        return jnp.zeros(shape, jnp.float32)
