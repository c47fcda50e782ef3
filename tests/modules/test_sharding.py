"""What devices that divide the tokens send one another."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer_lab.config import MeshConfig
from flaxformer_lab.modules.sharding import context_parallel_attention
from flaxformer_lab.training.mesh import Mesh


def test_gradients_of_keys_are_summed_over_devices_in_float32():
    """By what the program says: a CPU sums bfloat16 in float32 in any case."""
    parts = jnp.arange(1, 5, dtype=jnp.bfloat16).reshape(1, 4, 1, 1)  # of the queries, one on each device

    def attend(query, key, value, first, *, valid):
        return query * jnp.sum(key + value, axis=1, keepdims=True)

    def mixed(key):
        return jnp.sum(context_parallel_attention(attend, parts, key, 2 * key, valid=None))

    with jax.set_mesh(Mesh(MeshConfig(sequence=4)).mesh):
        traced = jax.jit(jax.grad(mixed)).trace(jnp.zeros((1, 4, 1, 1), jnp.bfloat16))
        gradient = traced.lower().compile()(jnp.zeros((1, 4, 1, 1), jnp.bfloat16))
    types = re.findall(r":(\w+)\[[\d,]+\](?:\{[^}]*\})? = reduce_scatter", str(traced.jaxpr))
    assert types == ["f32", "f32"]  # of keys and of values
    np.testing.assert_array_equal(gradient.astype(jnp.float32).ravel(), [(1 + 2) * 10] * 4)
