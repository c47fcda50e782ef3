"""Every kind of part, every strategy and the kernels, compiled for TPUs that are not here (`make test-tpu`)."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from flaxformer_lab.functional.lightning import lightning_attention
from flaxformer_lab.functional.softmax_attention import softmax_attention
from flaxformer_lab.modules.torus import learn_rings, psum_scatter
from flaxformer_lab.training.absent_devices import compile_for, tpus

pytestmark = pytest.mark.tpu

MIB = 2**20
KERNEL = "tpu_custom_call"
KERNELS = {
    "splash": lambda query, key, value, slopes: softmax_attention(query, key, value, causal=True),
    "lightning": functools.partial(lightning_attention, implementation="kernel"),
}


@pytest.fixture(scope="module")
def chips():
    return tpus("v5e:2x4")


@pytest.fixture(scope="module")
def chip(chips):
    return chips[:1]


def test_the_train_step_of_every_part(chip, train_step, parts):
    program = train_step(chip, parts)
    assert not program.collectives
    assert program.temporary_bytes < 32 * MIB


def test_heads_of_one_feature_need_no_array_of_all_scores(chip, train_step):
    """The scores of 64 heads and 8 texts are 32 MiB."""
    assert train_step(chip, {"training.batch_size": 8}, "per_dimension").temporary_bytes < 16 * MIB


def test_other_commands(chip, experiment, other_programs, compile_on):
    for name, (function, *arguments) in other_programs(experiment(chip, {})).items():
        assert compile_on(chip, function, *arguments).temporary_bytes < 32 * MIB, name


def test_pmap_sums_gradients_in_float32(chips, experiment, compile_pmap, assert_golden):
    program = compile_pmap(chips, experiment(chips[:1], {"model.dtype": "bfloat16"}))
    assert set(program.counts) == {"all-reduce f32"}
    assert_golden("v5e pmap", program)


def test_what_a_mesh_sends(chips, train_step, fused, sizes, assert_golden):
    program = train_step(chips, fused, **sizes)
    assert (KERNEL in program.kernels) == ("sequence" not in sizes)  # each device's tokens see all keys otherwise
    assert_golden("v5e " + " ".join(f"{axis}={size}" for axis, size in sizes.items()), program)


def test_fsdp_sends_what_theory_says(chips, train_step, experiment, fused, assert_fsdp):
    assert_fsdp(experiment(chips, fused, fsdp=8), train_step(chips, fused, fsdp=8))


@pytest.mark.parametrize(("slice_name", "sizes"), [("v5e:16x16", (1, 256)), ("v5p:16x16x16", (16, 256))])
@pytest.mark.parametrize("shape", [(2048, 6144), (2048, 50304)])
def test_a_torus_scatters_natively_ring_by_ring(slice_name, sizes, shape):
    """Asked for 256 chips at once, or for columns in no whole tiles, libtpu sums whole matrices over all of them."""
    mesh = jax.make_mesh(sizes, ("data", "fsdp"), devices=tpus(slice_name))
    learn_rings(mesh, "fsdp")
    whole = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, jax.P()))
    scatter = functools.partial(psum_scatter, axis="fsdp", dimension=0)
    program = compile_for(
        mesh, jax.shard_map(scatter, mesh=mesh, in_specs=jax.P(), out_specs=jax.P("fsdp"), check_vma=False), whole
    )
    assert program.counts == {"reduce-scatter f32": 2}
    assert sum(each.received for each in program.collectives) <= 1.02 * 4 * math.prod(shape)


@pytest.mark.parametrize("tokens", [2048, 32768])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_at_any_length(chip, compile_attention, name, dtype, tokens):
    program = compile_attention(chip, KERNELS[name], tokens, dtype)
    assert KERNEL in program.kernels
    assert program.temporary_bytes <= 8 * tokens * 2 * 128 * 4  # a few arrays like the query, and no scores
