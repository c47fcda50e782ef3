"""Position embeddings: sinusoidal and rotary."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sinusoidal(tokens: int, width: int) -> Float[Array, "{tokens} {width}"]:
    """Fixed table of sines (first half of the features) and cosines (second half) of wavelengths 2 pi to 2 pi 10^4.

    Vaswani et al. 2017, section 3.5; width must be even.
    """
    angle = _angles(jnp.arange(tokens), width)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def sinusoidal_2d(rows: int, columns: int, width: int) -> Float[Array, "{rows}*{columns} {width}"]:
    """The `sinusoidal` table of the row in the first half of the features, and that of the column in the second.

    Row by row; width must be a multiple of four (Carion et al. 2020, A.4).
    """
    row, column = (sinusoidal(size, width // 2) for size in (rows, columns))
    row = jnp.repeat(row, columns, axis=0)
    return jnp.concatenate([row, jnp.tile(column, (rows, 1))], axis=-1)


@jax.jit
def rotary(
    x: Float[Array, "batch tokens heads head_dim"], first: Int[Array, " batch"] | None = None
) -> Float[Array, "batch tokens heads head_dim"]:
    """Rotates feature pair (i, i + head_dim/2) of token t by t / 10^4^(2i/head_dim) (Su et al. 2021, eq. 34).

    Scores between rotated queries and keys depend on the distance of their tokens alone; head_dim must be even.
    first: the position of each example's first token; None means 0.
    """
    position = jnp.arange(x.shape[1])[None] + (0 if first is None else first[:, None])
    angle = _angles(position, x.shape[-1])[:, :, None, :]
    sine, cosine = jnp.sin(angle).astype(x.dtype), jnp.cos(angle).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


def _angles(position: Int[Array, "*tokens"], features: int) -> Float[Array, "*tokens half"]:
    """t / 10^4^(2i/features) for a token at position t and pair i."""
    frequency = 1e4 ** (-jnp.arange(0, features, 2) / features)
    return position[..., None] * frequency.reshape((1,) * position.ndim + frequency.shape)
