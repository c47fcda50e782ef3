"""The forward pass of lightning attention as one Pallas kernel, for GPUs and TPUs (Qin et al. 2024, algorithm 1).

Each head of each example goes through its blocks of tokens in order and keeps the state KV in fast memory. On a GPU one
program loops over all blocks of a head, with the state in registers. On a TPU the grid walks over the blocks, so that
VMEM holds one block and the next, however long the sequence is; the state stays in a scratch buffer. The gradient is
the blockwise form's own, in `lightning.py`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from flaxformer_lab.functional.platform import target_platform
from flaxformer_lab.functional.products import kernel_precision

# From how many tokens on the kernel was measured faster than the blockwise form, by the name of the device
# (`jax.devices()[0].device_kind`), with benchmarks/attention_length.py. A device that is not here does not use it.
# H200, batch 4, 32 heads of 128, bfloat16, 2026-11-26: forward 0.41, 2.30 and 7.60 ms at 1k, 8k and 32k tokens, where
# XLA's blocks of 64 took 0.98, 6.38 and 23.4; with gradients 2.2, 15.5 and 59.6, where those took 2.8, 19.1 and 75.0.
FASTER_FROM = {"NVIDIA H200": 1024}

# Those measurements had a program for each of so many heads, which is one for nearly every multiprocessor.
LEAST_PROGRAMS = 128

# The largest block of tokens. On a GPU the decays of all pairs in a block must fit in a program's registers.
LARGEST_BLOCK = {"gpu": 64, "tpu": 256}

# The smallest block of numbers that the compilers for GPUs multiply.
LEAST_FEATURES = 16

Decays = tuple[Array, Array, Array, Array]


def forward(
    query: Float[Array, "batch tokens heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads value_dim"],
    decays: Decays,
    *,
    platform: str | None = None,
    interpret: bool = False,
) -> Float[Array, "batch tokens heads value_dim"]:
    """Causal lightning attention as float32. decays: `lightning.block_decays` of a block.

    platform: `gpu` or `tpu`, which decides the form; where it is not given, that of the devices in use. Tokens are
    filled up to whole blocks and features to a power of two, with zeros, which add nothing. So every size is served.
    """
    batch, tokens, heads, _ = query.shape
    size, value_dim = decays[0].shape[-1], value.shape[-1]
    filled = math.ceil(tokens / size) * size
    streams = [_heads_first(x, filled) for x in (query, key, value)]
    per_head = [decay[0] for decay in decays]
    run = _looping if (platform or target_platform()) == "gpu" else _walking
    mixed = run(per_head, streams, size, heads, interpret)
    mixed = mixed.reshape(batch, heads, filled, -1)[:, :, :tokens, :value_dim]
    return jnp.swapaxes(mixed, 1, 2)


def _looping(decays: list[Array], streams: list[Array], size: int, heads: int, interpret: bool) -> Array:
    """The form for GPUs: a program for each head of each example."""
    from jax.experimental.pallas import triton

    of_head = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda program: (program % heads, 0, 0))  # noqa: E731
    of_program = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda program: (program, 0, 0))  # noqa: E731
    return pl.pallas_call(
        _all_blocks,
        out_shape=jax.ShapeDtypeStruct(streams[2].shape, jnp.float32),
        grid=(len(streams[0]),),
        in_specs=[*map(of_head, decays), *map(of_program, streams)],
        out_specs=of_program(streams[2]),
        interpret=interpret,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=8, num_stages=2),
    )(*decays, *streams)


def _all_blocks(pair_ref, enter_ref, leave_ref, across_ref, query_ref, key_ref, value_ref, mixed_ref):
    decays = [ref[...] for ref in (pair_ref, enter_ref, leave_ref, across_ref)]
    size = pair_ref.shape[0]

    def add(number, memory):
        rows = pl.ds(number * size, size)
        block = (ref[rows, :] for ref in (query_ref, key_ref, value_ref))
        mixed_ref[rows, :], memory = _advance(memory, decays, *block)
        return memory

    empty = jnp.zeros((query_ref.shape[1], value_ref.shape[1]), jnp.float32)
    jax.lax.fori_loop(0, query_ref.shape[0] // size, add, empty)


def _walking(decays: list[Array], streams: list[Array], size: int, heads: int, interpret: bool) -> Array:
    """The form for TPUs: a program for each block, in order, of each head of each example."""
    from jax.experimental.pallas import tpu

    programs, tokens, _ = streams[0].shape
    of_head = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda program, block: (program % heads, 0, 0))  # noqa: E731
    of_block = lambda x: pl.BlockSpec((None, size, x.shape[2]), lambda program, block: (program, block, 0))  # noqa: E731
    return pl.pallas_call(
        _one_block,
        out_shape=jax.ShapeDtypeStruct(streams[2].shape, jnp.float32),
        grid=(programs, tokens // size),
        in_specs=[*map(of_head, decays), *map(of_block, streams)],
        out_specs=of_block(streams[2]),
        scratch_shapes=[tpu.VMEM((streams[1].shape[2], streams[2].shape[2]), jnp.float32)],
        interpret=interpret,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )(*decays, *streams)


def _one_block(pair_ref, enter_ref, leave_ref, across_ref, query_ref, key_ref, value_ref, mixed_ref, memory_ref):
    @pl.when(pl.program_id(1) == 0)
    def _():
        memory_ref[...] = jnp.zeros_like(memory_ref)

    decays = [ref[...] for ref in (pair_ref, enter_ref, leave_ref, across_ref)]
    block = (ref[...] for ref in (query_ref, key_ref, value_ref))
    mixed_ref[...], memory_ref[...] = _advance(memory_ref[...], decays, *block)


def _advance(memory: Array, decays: list[Array], query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """One block: O = ((Q K^T) * M) V + Lq Q KV and the next KV = lambda^B KV + (Lk K)^T V."""
    pair, enter, leave, across = decays
    # Of the inputs' type for the state too: one pass rounds it no more coarsely than 16-bit inputs are rounded.
    product = functools.partial(_product, precision=kernel_precision(query))
    scores = product(query, key, 1, 1) * pair
    mixed = product(scores.astype(value.dtype), value, 1, 0)
    mixed += enter * product(query.astype(jnp.float32), memory, 1, 0)
    weighed = (key.astype(jnp.float32) * leave).astype(value.dtype)
    return mixed, across * memory + product(weighed, value, 0, 0)


def _product(a: Array, b: Array, of_a: int, of_b: int, *, precision: jax.lax.Precision) -> Array:
    """a b summed over one axis of each, in float32."""
    axes = (((of_a,), (of_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _heads_first(x: Float[Array, "batch tokens heads features"], tokens: int) -> Float[Array, "programs filled wide"]:
    """[batch x heads, tokens, features], filled up with zeros."""
    batch, length, heads, features = x.shape
    wide = max(LEAST_FEATURES, 1 << (features - 1).bit_length())
    x = jnp.pad(x, ((0, 0), (0, tokens - length), (0, 0), (0, wide - features)))
    return jnp.swapaxes(x, 1, 2).reshape(batch * heads, tokens, wide)
