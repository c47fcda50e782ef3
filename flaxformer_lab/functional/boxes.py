"""Boxes, (x0, y0, x1, y1) unless said otherwise: areas, overlaps, codes, and non-maximum suppression.

x runs along the columns of an image, y along its rows. A box with x1 <= x0 or y1 <= y0 is empty: its area is 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Boxes = Float[Array, "*number 4"]
SIZE_LIMIT = 4.135  # log(1000 / 16): of a decoded log-size, so that no box explodes (Girshick, Detectron)


def to_corners(boxes: Boxes) -> Boxes:
    """(x0, y0, x1, y1) of boxes (centre x, centre y, width, height)."""
    centre, size = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def to_centres(boxes: Boxes) -> Boxes:
    """(centre x, centre y, width, height) of boxes (x0, y0, x1, y1)."""
    low, high = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def area(boxes: Boxes) -> Float[Array, "*number"]:
    """Width times height; 0 of an empty box."""
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return size[..., 0] * size[..., 1]


def intersection(a: Float[Array, "*batch a 4"], b: Float[Array, "*batch b 4"]) -> Float[Array, "*batch a b"]:
    """The area that each box of a has in common with each of b."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    corners = [jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])]
    return area(jnp.concatenate(corners, axis=-1))


def iou(a: Float[Array, "*batch a 4"], b: Float[Array, "*batch b 4"]) -> Float[Array, "*batch a b"]:
    """Intersection over union of each box of a with each of b; 0 where both are empty."""
    common = intersection(a, b)
    return _ratio(common, area(a)[..., :, None] + area(b)[..., None, :] - common)


def giou(a: Float[Array, "*batch a 4"], b: Float[Array, "*batch b 4"]) -> Float[Array, "*batch a b"]:
    """Generalised IoU, from -1 to 1: IoU less the share of the smallest box around both that neither covers.

    Rezatofighi et al. 2019, algorithm 1.
    """
    common = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - common
    a, b = a[..., :, None, :], b[..., None, :, :]
    around = area(jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1))
    return _ratio(common, union) - _ratio(around - union, around)


def _ratio(part: Array, whole: Array) -> Array:
    """0 where there is no whole; the gradient is finite there, too."""
    return part / jnp.where(whole > 0, whole, 1)


def encode(boxes: Boxes, anchors: Boxes) -> Boxes:
    """What leads from anchors to boxes: shifts in units of the anchor's size, and logarithms of ratios of sizes.

    Girshick et al. 2014, appendix C. Both have an area.
    """
    box, anchor = to_centres(boxes), to_centres(anchors)
    shift = (box[..., :2] - anchor[..., :2]) / anchor[..., 2:]
    return jnp.concatenate([shift, jnp.log(box[..., 2:] / anchor[..., 2:])], axis=-1)


def decode(code: Boxes, anchors: Boxes) -> Boxes:
    """The boxes to which a code leads from anchors: undoes `encode`."""
    anchor = to_centres(anchors)
    centre = anchor[..., :2] + code[..., :2] * anchor[..., 2:]
    size = anchor[..., 2:] * jnp.exp(jnp.minimum(code[..., 2:], SIZE_LIMIT))
    return to_corners(jnp.concatenate([centre, size], axis=-1))


def non_maximum_suppression(
    boxes: Float[Array, "number 4"],
    scores: Float[Array, " number"],
    threshold: float,
    labels: Int[Array, " number"] | None = None,
) -> Bool[Array, " number"]:
    """Which boxes are kept: from the highest score down, each whose IoU with all that are kept is at most `threshold`.

    A box whose score is -inf is not there. labels: only boxes of one label suppress each other. Of equal scores the
    first goes first.
    """
    order = jnp.argsort(-scores)
    overlaps = iou(boxes[order], boxes[order]) > threshold
    if labels is not None:
        overlaps = overlaps & (labels[order][:, None] == labels[order][None])
    is_there = scores[order] > -jnp.inf

    def step(index: Int[Array, ""], kept: Bool[Array, " number"]) -> Bool[Array, " number"]:
        return kept.at[index].set(is_there[index] & ~jnp.any(kept & overlaps[index]))

    kept = jax.lax.fori_loop(0, len(scores), step, jnp.zeros(scores.shape, bool))
    return jnp.zeros(scores.shape, bool).at[order].set(kept)


def coverage(
    boxes: Float[Array, "*batch number 4"], valid: Bool[Array, "*batch number"], rows: int, columns: int, fine: int = 8
) -> Float[Array, "*batch rows columns"]:
    """The share of each cell of a grid over the image that lies inside one of the valid boxes, which are in shares.

    Counted at `fine` x `fine` points of each cell.
    """
    inside = []
    for axis, cells in ((0, columns), (1, rows)):
        points = (jnp.arange(cells * fine) + 0.5) / (cells * fine)
        points = points.reshape((1,) * valid.ndim + points.shape)
        inside.append((boxes[..., axis, None] <= points) & (points < boxes[..., axis + 2, None]))
    covered = jnp.any(inside[1][..., :, None] & inside[0][..., None, :] & valid[..., None, None], axis=-3)
    cells = covered.reshape(*covered.shape[:-2], rows, fine, columns, fine)
    return jnp.mean(cells.astype(jnp.float32), axis=(-3, -1))
