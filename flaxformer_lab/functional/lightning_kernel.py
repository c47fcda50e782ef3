"""The forward pass of lightning attention as one Pallas kernel, for GPUs and TPUs (Qin et al. 2024, algorithm 1).

Each head of each example processes its blocks of tokens in order and keeps the state KV in fast memory. On a GPU one
program loops over all blocks of a head, with the state in registers. On a TPU the grid iterates over the blocks, so
that VMEM holds only this block and the next, however long the sequence is; the state stays in a scratch buffer. The
gradient is that of the blockwise form in `lightning.py`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from flaxformer_lab.functional.platform import target_platform
from flaxformer_lab.functional.products import kernel_precision

# The number of tokens from which the kernel was measured to be faster than the blockwise form, by the device's name
# (`jax.devices()[0].device_kind`), with benchmarks/attention_length.py. Other devices do not use the kernel.
# H200, batch 4, 32 heads of 128, bfloat16, 2026-11-26: forward 0.41, 2.30 and 7.60 ms at 1k, 8k and 32k tokens, where
# XLA's blocks of 64 took 0.98, 6.38 and 23.4; with gradients 2.2, 15.5 and 59.6, where those took 2.8, 19.1 and 75.0.
FASTER_FROM = {"NVIDIA H200": 1024}

# These measurements had 128 heads in a batch, each with its own program: one for nearly every multiprocessor.
MIN_PROGRAMS = 128

# The largest block of tokens. On a GPU the decays of all pairs in a block must fit in a program's registers.
MAX_BLOCK = {"gpu": 64, "tpu": 256}

# The smallest block of numbers that the compilers for GPUs multiply.
MIN_FEATURES = 16

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

    platform: `gpu` or `tpu`, which decides the form; by default the platform in use. Tokens are padded to whole blocks
    and features to a power of two, with zeros, which add nothing. So every size works.
    """
    batch, tokens, heads, _ = query.shape
    size, value_dim = decays[0].shape[-1], value.shape[-1]
    padded_tokens = math.ceil(tokens / size) * size
    inputs = [_pad_and_flatten_heads(x, padded_tokens) for x in (query, key, value)]
    per_head = [decay[0] for decay in decays]
    call = _call_on_gpu if (platform or target_platform()) == "gpu" else _call_on_tpu
    output = call(per_head, inputs, size, heads, interpret)
    output = output.reshape(batch, heads, padded_tokens, -1)[:, :, :tokens, :value_dim]
    return jnp.swapaxes(output, 1, 2)


def _call_on_gpu(decays: list[Array], inputs: list[Array], size: int, heads: int, interpret: bool) -> Array:
    """The form for GPUs: a program for each head of each example."""
    from jax.experimental.pallas import triton

    of_head = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda program: (program % heads, 0, 0))  # noqa: E731
    of_program = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda program: (program, 0, 0))  # noqa: E731
    return pl.pallas_call(
        _gpu_kernel,
        out_shape=jax.ShapeDtypeStruct(inputs[2].shape, jnp.float32),
        grid=(len(inputs[0]),),
        in_specs=[*map(of_head, decays), *map(of_program, inputs)],
        out_specs=of_program(inputs[2]),
        interpret=interpret,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=8, num_stages=2),
    )(*decays, *inputs)


def _gpu_kernel(
    decay_mask_ref, query_decay_ref, key_decay_ref, block_decay_ref, query_ref, key_ref, value_ref, output_ref
):
    decays = [ref[...] for ref in (decay_mask_ref, query_decay_ref, key_decay_ref, block_decay_ref)]
    size = decay_mask_ref.shape[0]

    def step(number, state):
        rows = pl.ds(number * size, size)
        block = (ref[rows, :] for ref in (query_ref, key_ref, value_ref))
        output_ref[rows, :], state = _block_step(state, decays, *block)
        return state

    initial = jnp.zeros((query_ref.shape[1], value_ref.shape[1]), jnp.float32)
    jax.lax.fori_loop(0, query_ref.shape[0] // size, step, initial)


def _call_on_tpu(decays: list[Array], inputs: list[Array], size: int, heads: int, interpret: bool) -> Array:
    """The form for TPUs: a program for each block, in order, of each head of each example."""
    from jax.experimental.pallas import tpu

    programs, tokens, _ = inputs[0].shape
    of_head = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda program, block: (program % heads, 0, 0))  # noqa: E731
    of_block = lambda x: pl.BlockSpec((None, size, x.shape[2]), lambda program, block: (program, block, 0))  # noqa: E731
    return pl.pallas_call(
        _tpu_kernel,
        out_shape=jax.ShapeDtypeStruct(inputs[2].shape, jnp.float32),
        grid=(programs, tokens // size),
        in_specs=[*map(of_head, decays), *map(of_block, inputs)],
        out_specs=of_block(inputs[2]),
        scratch_shapes=[tpu.VMEM((inputs[1].shape[2], inputs[2].shape[2]), jnp.float32)],
        interpret=interpret,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )(*decays, *inputs)


def _tpu_kernel(
    decay_mask_ref,
    query_decay_ref,
    key_decay_ref,
    block_decay_ref,
    query_ref,
    key_ref,
    value_ref,
    output_ref,
    state_ref,
):
    @pl.when(pl.program_id(1) == 0)
    def _():
        state_ref[...] = jnp.zeros_like(state_ref)

    decays = [ref[...] for ref in (decay_mask_ref, query_decay_ref, key_decay_ref, block_decay_ref)]
    block = (ref[...] for ref in (query_ref, key_ref, value_ref))
    output_ref[...], state_ref[...] = _block_step(state_ref[...], decays, *block)


def _block_step(state: Array, decays: list[Array], query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """One block: O = ((Q K^T) * M) V + Lq Q KV and the next KV = lambda^B KV + (Lk K)^T V."""
    decay_mask, query_decay, key_decay, block_decay = decays
    # The precision of the inputs, for the state too: one pass rounds it no more coarsely than 16-bit inputs.
    product = functools.partial(_product, precision=kernel_precision(query))
    scores = product(query, key, 1, 1) * decay_mask
    output = product(scores.astype(value.dtype), value, 1, 0)
    output += query_decay * product(query.astype(jnp.float32), state, 1, 0)
    weighted = (key.astype(jnp.float32) * key_decay).astype(value.dtype)
    return output, block_decay * state + product(weighted, value, 0, 0)


def _product(a: Array, b: Array, axis_a: int, axis_b: int, *, precision: jax.lax.Precision) -> Array:
    """a b summed over one axis of each, in float32."""
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _pad_and_flatten_heads(
    x: Float[Array, "batch tokens heads features"], tokens: int
) -> Float[Array, "programs padded_tokens padded_features"]:
    """[batch x heads, tokens, features], padded with zeros."""
    batch, length, heads, features = x.shape
    padded_features = max(MIN_FEATURES, 1 << (features - 1).bit_length())
    x = jnp.pad(x, ((0, 0), (0, tokens - length), (0, 0), (0, padded_features - features)))
    return jnp.swapaxes(x, 1, 2).reshape(batch * heads, tokens, padded_features)
