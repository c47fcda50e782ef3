"""Scenes: items scattered over a canvas, among clutter, with the box of each; one scene follows from one key.

Boxes are shares of the canvas, (x0, y0, x1, y1): x runs along the columns, y along the rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from flaxformer_lab.functional.boxes import area, intersection

PLACES = 32  # drawn for each item, of which it takes the first that overlaps little enough


class Items(NamedTuple):
    """Images from 0 (background) to 1, the box around the ink of each (as shares of the image), and what it shows.

    first, number: which of them a scene may use.
    """

    images: Float[Array, "items rows columns"]
    boxes: Float[Array, "items 4"]
    labels: Int[Array, " items"]
    first: Int[Array, ""] | int
    number: Int[Array, ""] | int


class Scene(NamedTuple):
    """An image from 0 to 1, and its objects: the box and the label of each that is `valid`; the others are padding."""

    image: Float[Array, "canvas canvas"]
    boxes: Float[Array, "capacity 4"]
    labels: Int[Array, " capacity"]
    valid: Bool[Array, " capacity"]


def draw_scene(
    key: Key[Array, ""],
    items: Items,
    *,
    canvas: int,
    count: tuple[int, int],
    size: float,
    scale: tuple[float, float],
    overlap: float,
    clutter: int,
    noise: float,
) -> Scene:
    """One scene, with room for `count[1]` objects.

    canvas: rows and columns. count: the fewest and the most items. size: pixels along a side of an item's image at
    scale 1; scale: the least and the largest. overlap: the largest share of the smaller box that two boxes may have in
    common; an item for which none of `PLACES` places is free is left out, of the image and of the boxes. clutter: how
    many quarters of other images lie about. noise: standard deviation of Gaussian noise.
    """
    count_key, item_key, clutter_key, noise_key = jax.random.split(key, 4)
    capacity = count[1]
    number = jax.random.randint(count_key, (), count[0], capacity + 1)
    chosen, side = _choose(item_key, items, capacity, size, scale)
    tight = items.boxes[chosen] * side[:, None]  # in pixels of the item's own frame
    extent = tight[:, 2:] - tight[:, :2]
    places = jax.random.uniform(jax.random.fold_in(item_key, 2), (capacity, PLACES, 2))
    corners = places * (canvas - extent)[:, None]
    candidates = jnp.concatenate([corners, corners + extent[:, None]], axis=-1)

    def place(boxes: Float[Array, "capacity 4"], index: Int[Array, ""]):
        """Adds an item; a box that is not there has no area, and so overlaps with none."""
        common = intersection(candidates[index], boxes)
        smaller = jnp.minimum(area(candidates[index])[:, None], area(boxes)[None])
        fits = jnp.all(common <= overlap * smaller, axis=1)
        box = candidates[index, jnp.argmax(fits)]
        box = jnp.where((index < number) & jnp.any(fits), box, 0)
        return boxes.at[index].set(box), None

    boxes, _ = jax.lax.scan(place, jnp.zeros((capacity, 4)), jnp.arange(capacity))
    valid = boxes[:, 2] > boxes[:, 0]
    drawn = items.images[chosen] * valid[:, None, None]
    layers = [_render(drawn, boxes[:, :2] - tight[:, :2], side, canvas)]
    if clutter:
        layers.append(_clutter(clutter_key, items, clutter, size, scale, canvas))
    image = jnp.max(jnp.concatenate(layers), axis=0)
    if noise:
        image = jnp.clip(image + noise * jax.random.normal(noise_key, image.shape), 0, 1)
    return Scene(image, boxes / canvas, jnp.where(valid, items.labels[chosen], 0), valid)


def _choose(key: Key[Array, ""], items: Items, number: int, size: float, scale: tuple[float, float]):
    """Which items, and how many pixels along a side each has."""
    # Uniform below `items.number`, which may be traced.
    share = jax.random.uniform(key, (number,))
    chosen = items.first + jnp.floor(share * items.number).astype(jnp.int32)
    return chosen, size * jax.random.uniform(jax.random.fold_in(key, 1), (number,), minval=scale[0], maxval=scale[1])


def _clutter(
    key: Key[Array, ""], items: Items, number: int, size: float, scale: tuple[float, float], canvas: int
) -> Float[Array, "number canvas canvas"]:
    """A random quarter of each of some random images, at random places."""
    chosen, side = _choose(key, items, number, size, scale)
    corner = jax.random.uniform(jax.random.fold_in(key, 2), (number, 2)) * (canvas - side)[:, None]
    rows, columns = items.images.shape[1:]
    low, left = jax.random.bernoulli(jax.random.fold_in(key, 3), shape=(2, number, 1))
    kept = ((jnp.arange(rows)[None] >= rows // 2) == low)[:, :, None]
    kept = kept & ((jnp.arange(columns)[None] >= columns // 2) == left)[:, None]
    return _render(items.images[chosen] * kept, corner, side, canvas)


def _render(
    images: Float[Array, "number rows columns"],
    corner: Float[Array, "number 2"],
    side: Float[Array, " number"],
    canvas: int,
) -> Float[Array, "number canvas canvas"]:
    """Each image on a canvas of its own, its upper left corner (x, y) at `corner`, stretched to `side` pixels."""
    rows = _interpolation(corner[:, 1], side, images.shape[1], canvas)
    columns = _interpolation(corner[:, 0], side, images.shape[2], canvas)
    return jnp.einsum("nyi,nij,nxj->nyx", rows, images, columns)


def _interpolation(
    start: Float[Array, " number"], side: Float[Array, " number"], cells: int, canvas: int
) -> Float[Array, "number canvas cells"]:
    """Weights of linear interpolation from `cells` cells, stretched to `side` pixels from `start` on, to pixels.

    Where cells are smaller than pixels, it is over all cells that a pixel covers, as Pillow's is.
    """
    each = jnp.arange(canvas)[None] + 0.5
    at = (each - start[:, None]) / side[:, None] * cells - 0.5  # in cells, from the centre of the first
    reach = jnp.maximum(cells / side, 1)[:, None, None]
    weights = jnp.maximum(0, 1 - jnp.abs(at[:, :, None] - jnp.arange(cells)[None, None]) / reach)
    return weights / reach
