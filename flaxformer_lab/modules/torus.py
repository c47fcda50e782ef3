"""Collectives over a mesh axis whose devices lie in a TPU's torus.

Its compiler gathers and scatters natively along one axis of the torus at a time. Asked for several at once, it sums
whole arrays over all devices, which sends twice as much. So here the devices exchange along one axis after another.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# What libtpu 0.0.42 scatters natively: along axes of this many chips, arrays in so many rows or columns.
LEAST_RING, TILES = 8, 1024

# Of each mesh and axis whose devices have been seen, the sizes of the rings that the axis consists of.
_rings: dict[tuple, tuple[int, ...]] = {}


def learn_rings(mesh: jax.sharding.Mesh, axis: str) -> None:
    """Records how the devices along `axis` are connected; programs traced under the mesh see no devices."""
    line = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)[:, 0]
    coordinates = [getattr(device, "coords", None) for device in line]
    placed = line[0].platform == "tpu" and all(coordinates)
    rings = rings_of(np.array(coordinates)) if placed else (len(line),)
    _rings[_key(mesh.abstract_mesh, axis)] = rings


def rings_of(coordinates: Int[np.ndarray, "devices dimensions"]) -> tuple[int, ...]:
    """The sizes of the torus's axes that a line of devices runs through, the slowest first; else all as one ring.

    The line must fill a box row by row, along axes of at least LEAST_RING.
    """
    number = len(coordinates)
    sizes = {dimension: len(set(column)) for dimension, column in enumerate(coordinates.T) if len(set(column)) > 1}
    if math.prod(sizes.values()) == number and all(size >= LEAST_RING for size in sizes.values()):
        for order in itertools.permutations(sizes):
            box = coordinates.reshape(*(sizes[dimension] for dimension in order), -1)
            changes = (set(np.argwhere(np.diff(box, axis=axis))[:, -1].tolist()) for axis in range(len(order)))
            if all(found == {dimension} for found, dimension in zip(changes, order, strict=True)):
                return tuple(sizes[dimension] for dimension in order)
    return (number,)


def all_gather(x: Float[Array, "..."], axis: str, dimension: int) -> Float[Array, "..."]:
    """`jax.lax.all_gather(x, axis, axis=dimension, tiled=True)`, ring by ring."""
    for groups in reversed(_groups(axis)):
        x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True, axis_index_groups=groups)
    return x


def psum_scatter(x: Float[Array, "rows columns"], axis: str, dimension: int) -> Float[Array, "..."]:
    """`jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)`, ring by ring."""
    *rings, last = _groups(axis)
    other, length = 1 - dimension, x.shape[1 - dimension]
    if rings:
        x = _filled_up(x, other)
    for groups in rings:
        parts = len(groups[0])
        x = x.reshape(*x.shape[:dimension], parts, x.shape[dimension] // parts, *x.shape[dimension + 1 :])
        x = jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, axis_index_groups=groups)
    x = jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True, axis_index_groups=last)
    return jax.lax.slice_in_dim(x, 0, length, axis=other)


def _filled_up(x: Float[Array, "rows columns"], dimension: int) -> Float[Array, "..."]:
    """With zeros up to whole tiles, where these are few: a vocabulary is seldom a multiple of the tile."""
    filling = -x.shape[dimension] % TILES
    if filling > x.shape[dimension] / 16:
        return x
    return jnp.pad(x, [(0, filling if axis == dimension else 0) for axis in range(x.ndim)])


def _groups(axis: str) -> list[list[list[int]] | None]:
    """Of each ring, which devices along `axis` exchange with one another; None for all."""
    rings = _rings.get(_key(jax.sharding.get_abstract_mesh(), axis), ())
    if len(rings) < 2:
        return [None]
    places = np.arange(math.prod(rings)).reshape(rings)
    return [np.moveaxis(places, ring, -1).reshape(-1, size).tolist() for ring, size in enumerate(rings)]


def _key(mesh: jax.sharding.AbstractMesh, axis: str) -> tuple:
    """A key of the mesh that is the same inside and outside `jax.shard_map`."""
    return mesh.axis_names, mesh.axis_sizes, mesh.abstract_device, axis
