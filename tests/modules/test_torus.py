"""Collectives ring by ring: the same results as at once; and which rings a line of chips consists of."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.modules import torus


def row_by_row(*sizes):
    """The coordinates of a box of chips, the last one fastest."""
    return np.array(list(itertools.product(*map(range, sizes))))


@pytest.mark.parametrize(
    ("coordinates", "rings"),
    [
        (row_by_row(16, 16, 1), (16, 16)),
        (row_by_row(8, 16, 1)[:, [1, 0, 2]], (8, 16)),
        (row_by_row(8, 8, 8), (8, 8, 8)),
        (row_by_row(1, 8, 1), (8,)),
        (row_by_row(2, 4, 1), (8,)),  # too short for rings of their own
        (row_by_row(4, 16, 1), (64,)),
        (np.random.default_rng(0).permutation(row_by_row(8, 8, 1)), (64,)),  # in no order
        (row_by_row(8, 8, 1)[:60], (60,)),  # not a box
    ],
)
def test_rings_are_the_axes_of_the_torus(coordinates, rings):
    assert torus.rings_of(coordinates) == rings


@pytest.fixture
def mesh(monkeypatch):
    """Four devices that lie, as far as collectives know, in a torus of 2 x 2."""
    mesh = jax.make_mesh((4,), ("line",), axis_types=(jax.sharding.AxisType.Auto,))
    torus.learn_rings(mesh, "line")
    assert torus._rings[torus._key(mesh.abstract_mesh, "line")] == (4,)
    monkeypatch.setitem(torus._rings, torus._key(mesh.abstract_mesh, "line"), (2, 2))
    return mesh


@pytest.mark.parametrize("dimension", [0, 1])
def test_ring_by_ring_is_at_once(mesh, dimension, monkeypatch):
    monkeypatch.setattr(torus, "TILES", 17)  # so that something is filled up
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (4, 16, 16)), jnp.float32)
    shard = jax.P(*(None,) * dimension, "line")

    def both(x):
        summed = torus.psum_scatter(x[0], "line", dimension)
        return summed, torus.all_gather(summed, "line", dimension)

    run = jax.shard_map(both, in_specs=jax.P("line"), out_specs=(shard, jax.P()), check_vma=False)
    with jax.set_mesh(mesh):
        program = jax.jit(run)
        assert program.lower(x).as_text().count("reduce_scatter") == 2
        for result in program(x):
            np.testing.assert_array_equal(result, np.sum(x, axis=0))
