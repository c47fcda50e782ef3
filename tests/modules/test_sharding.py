"""What devices that divide the tokens send one another."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.config import MeshConfig, parse_config
from flaxformer_lab.functional import lightning
from flaxformer_lab.functional.choice import Choice
from flaxformer_lab.modules.attention import make_attention
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import context_parallel_attention, take_sharded_rows
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


def calls(jaxpr, inside=False):
    """Of each kernel that a program calls, whether that is inside a `shard_map`."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield inside
            continue
        within = inside or equation.primitive.name == "shard_map"
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from calls(inner, within)


@pytest.mark.parametrize("kind", ["linear", "lightning"])
def test_kernels_run_inside_shard_map_and_not_on_tokens_in_shares(kind, monkeypatch):
    """A compiler cannot partition a kernel."""
    monkeypatch.setattr(lightning, "choose", lambda *arguments: Choice("interpreted kernel", "for this test"))
    attention = {"num_heads": 2, "kind": kind}
    config = parse_config({"model": {"width": 8, "attention": attention, "causal": True, "position": "rotary"}}).model
    module = make_attention(config, tokens=8, rngs=Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8)), jnp.float32)
    found, outputs = {}, [jax.jit(module)(x)]
    for name, sizes in {"heads": {"data": 2, "tensor": 2}, "tokens": {"sequence": 4}}.items():
        with jax.set_mesh(Mesh(MeshConfig(**sizes)).mesh):
            run = lambda x: module(x)  # noqa: E731
            found[name] = list(calls(jax.make_jaxpr(run)(x).jaxpr))
            outputs.append(jax.jit(run)(x))
    assert found["heads"] and all(found["heads"]) and found["tokens"] == []
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=1e-4, atol=1e-5)


def test_a_row_that_a_table_lacks_is_nan_on_one_device_and_on_several():
    table = nnx.Param(jnp.arange(16.0).reshape(8, 2))
    indices = jnp.array([[-1, 0], [7, 8]])
    rows = [take_sharded_rows(table, indices, jnp.float32)]
    with jax.set_mesh(Mesh(MeshConfig(tensor=4)).mesh):
        rows.append(jax.jit(lambda value: take_sharded_rows(nnx.Param(value), indices, jnp.float32))(table[...]))
        total = lambda value: jnp.nansum(take_sharded_rows(nnx.Param(value), indices, jnp.float32))  # noqa: E731
        gradient = jax.jit(jax.grad(total))(table[...])
    for found in rows:
        np.testing.assert_array_equal(found, [[[np.nan] * 2, [0, 1]], [[14, 15], [np.nan] * 2]])
    np.testing.assert_array_equal(gradient, np.isin(np.arange(8), [0, 7])[:, None] * np.ones(2))
