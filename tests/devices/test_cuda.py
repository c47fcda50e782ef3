"""Every kind of part, every strategy and the kernels, compiled for H100s that are not here (`make test-cuda`)."""

import functools

import jax.numpy as jnp
import pytest

from flaxformer_lab.functional.lightning import lightning_attention
from flaxformer_lab.functional.softmax_attention import softmax_attention
from flaxformer_lab.training.absent_devices import h100s

pytestmark = pytest.mark.cuda

MIB = 2**20
CUDNN = {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
KERNELS = {
    "cudnn": (lambda query, key, value, slopes: softmax_attention(query, key, value, causal=True), CUDNN),
    "lightning": (functools.partial(lightning_attention, implementation="kernel"), {"__gpu$xla.gpu.triton"}),
}


@pytest.fixture(scope="module")
def gpus():
    return h100s(8)


@pytest.fixture(scope="module")
def gpu():
    return h100s(1)


def test_the_train_step_of_every_part(gpu, train_step, parts):
    program = train_step(gpu, parts)
    assert not program.collectives
    assert program.temporary_bytes < 32 * MIB


def test_heads_of_one_feature_need_no_array_of_all_scores(gpu, train_step):
    """The scores of 64 heads and 8 texts are 32 MiB."""
    assert train_step(gpu, {"training.batch_size": 8}, "per_dimension").temporary_bytes < 16 * MIB


def test_other_commands(gpu, experiment, other_programs, compile_on):
    for name, (function, *arguments) in other_programs(experiment(gpu, {})).items():
        assert compile_on(gpu, function, *arguments).temporary_bytes < 32 * MIB, name


def test_pmap_sums_gradients_in_float32(gpus, experiment, compile_pmap, assert_golden):
    program = compile_pmap(gpus, experiment(gpus[:1], {"model.dtype": "bfloat16"}))
    assert set(program.counts) == {"all-reduce f32"}
    assert_golden("h100 pmap", program)


def test_what_a_mesh_sends(gpus, train_step, fused, sizes, assert_golden):
    program = train_step(gpus, fused, **sizes)
    assert (program.kernels >= CUDNN) == ("sequence" not in sizes)  # each device's tokens see all keys otherwise
    assert_golden("h100 " + " ".join(f"{axis}={size}" for axis, size in sizes.items()), program)


def test_fsdp_sends_what_theory_says(gpus, train_step, experiment, fused, assert_fsdp):
    assert_fsdp(experiment(gpus, fused, fsdp=8), train_step(gpus, fused, fsdp=8))


def test_fsdp_computes_while_it_sends(gpus, train_step, fused):
    """All but the first gather, before which nothing can be computed, and sums of single numbers."""
    hidden = train_step(gpus, fused, fsdp=8).hidden_by
    first, *gathers = (operations for kind, operations in hidden if kind == "all-gather")
    scatters = [operations for kind, operations in hidden if kind == "reduce-scatter"]
    assert gathers and scatters and all(gathers + scatters), hidden


@pytest.mark.parametrize("tokens", [2048, 32768])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_at_any_length(gpu, compile_attention, name, tokens):
    attend, calls = KERNELS[name]
    program = compile_attention(gpu, attend, tokens, jnp.bfloat16)
    assert program.kernels >= calls
    assert program.temporary_bytes <= 8 * tokens * 2 * 128 * 4  # a few arrays like the query, and no scores


def test_the_lightning_kernel_in_float32(gpu, compile_attention):
    attend, calls = KERNELS["lightning"]
    assert compile_attention(gpu, attend, 2048, jnp.float32).kernels >= calls
