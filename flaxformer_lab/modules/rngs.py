"""The random keys that parameters are drawn with."""

import jax
from jaxtyping import Array, Key


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
