"""How far a model sees in an image: by its attention (Raghu et al. 2021), and by its gradients (Luo et al. 2016)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array, "batch rows columns channels"]
Field = Float[Array, "rows columns"]


def patch_side(tokens: int, rows: int, columns: int) -> int:
    """The side of the square patches, so many, of an image.

    Raises:
        ValueError: no patches of one size are so many.
    """
    side = round((rows * columns / tokens) ** 0.5)
    if side == 0 or rows % side or columns % side or rows * columns != tokens * side**2:
        raise ValueError(f"{tokens} tokens are no square patches of {rows} x {columns} pixels")
    return side


def token_places(tokens: int, rows: int, columns: int) -> Float[np.ndarray, "tokens 2"]:
    """The centre of each token's patch in pixels, where tokens are square patches of an image, row by row.

    Raises:
        ValueError: no patches of one size are so many.
    """
    size = patch_side(tokens, rows, columns)
    grid = np.stack(np.meshgrid(np.arange(rows // size), np.arange(columns // size), indexing="ij"), axis=-1)
    return ((grid + 0.5) * size - 0.5).reshape(-1, 2)


@jax.jit
def attention_distance(
    weights: Float[Array, "batch heads tokens tokens"], places: Float[Array, "tokens 2"]
) -> Float[Array, " heads"]:
    """sum_k a_qk |place of q - place of k|, the mean over examples and queries, in pixels (Raghu et al. 2021)."""
    apart = jnp.linalg.norm(places[:, None] - places[None], axis=-1).astype(weights.dtype)
    return jnp.mean(jnp.sum(weights * apart[None, None], axis=-1), axis=(0, 2))


def receptive_field(
    function: Callable[[Images], Float[Array, "batch tokens features"]], images: Images, token: int
) -> Field:
    """E |d (a token's output) / d pixel|, summed over channels: the effective receptive field (Luo et al. 2016).

    The output's features are summed with random signs, others for each image.
    """

    def output(images: Images) -> Float[Array, ""]:
        of_token = function(images)[:, token]
        return jnp.sum(of_token * jax.random.rademacher(jax.random.key(0), of_token.shape, of_token.dtype))

    return jnp.mean(jnp.sum(jnp.abs(jax.grad(output)(images)), axis=-1), axis=0)


@jax.jit
def field_radius(field: Field, place: Float[Array, "2"]) -> Float[Array, ""]:
    """The mean distance of a field's mass from a place, in pixels."""
    rows, columns = jnp.arange(field.shape[0]) - place[0], jnp.arange(field.shape[1]) - place[1]
    apart = jnp.sqrt(jnp.square(rows)[:, None] + jnp.square(columns)[None])
    return jnp.sum(field * apart) / jnp.sum(field)


@jax.jit
def field_share(field: Field, least: float = 0.0455) -> Float[Array, ""]:
    """The share of the pixels that count at least so much beside the one that counts most.

    The default is what a Gaussian has two standard deviations away (Luo et al. 2016, section 3).
    """
    return jnp.mean(field >= least * jnp.max(field))
