"""RoIAlign: the features inside of a box, as a grid of fixed size (He et al. 2017, Mask R-CNN, section 3)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.products import product


def roi_align(
    features: Float[Array, "rows columns features"],
    boxes: Float[Array, "boxes 4"],
    size: int,
    samples: int = 2,
) -> Float[Array, "boxes {size} {size} features"]:
    """Each box divided into size x size cells; the mean of samples x samples points of a cell, by linear interpolation.

    boxes: (x0, y0, x1, y1) in cells of the features, whose first one reaches from 0 to 1 (torchvision's aligned=True).
    Interpolation along rows and columns are independent, so both are a product with a matrix of weights. Where a point
    lies is computed in the dtype of the boxes, which should be float32; the result has that of the features.
    """
    along_rows = _weights(boxes[:, 1], boxes[:, 3], features.shape[0], size, samples)
    along_columns = _weights(boxes[:, 0], boxes[:, 2], features.shape[1], size, samples)
    return product("bsi,ijf,btj->bstf", along_rows, features, along_columns).astype(features.dtype)


def _weights(
    start: Float[Array, " boxes"], end: Float[Array, " boxes"], cells: int, size: int, samples: int
) -> Float[Array, "boxes {size} {cells}"]:
    """Of each cell of the features in each of the `size` parts of the boxes; 0 for points beyond them by a cell."""
    shares = (jnp.arange(size * samples) + 0.5) / (size * samples)
    at = start[:, None] + (end - start)[:, None] * shares[None] - 0.5  # from the centre of the first cell
    is_near = (at >= -1) & (at <= cells)
    at = jnp.clip(at, 0, cells - 1)
    weights = jnp.maximum(0, 1 - jnp.abs(at[:, :, None] - jnp.arange(cells)[None, None])) * is_near[:, :, None]
    return jnp.mean(weights.reshape(len(start), size, samples, cells), axis=2)
