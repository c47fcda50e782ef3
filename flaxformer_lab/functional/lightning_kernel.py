"""Lightning attention as Pallas kernels, for GPUs and TPUs (Qin et al. 2024, algorithms 1 and 2).

`attend` processes the blocks of tokens of each head in order, with the state KV in fast memory, and reads and writes
the model's layout and dtype. On a GPU the blocks of a head are cut into segments that run side by side: the states
that segments add are computed first, then summed up, and then each segment writes its outputs. On a TPU the grid
iterates over the blocks, so that VMEM holds only this block and the next, however long the sequence is.

Gradients need no other kernel. With A(Q, K, V) for the attention and A' for the same in reverse order of tokens,
dQ = A(dO, V, K), dK = A'(V, dO, Q) and dV = A'(K, Q, dO).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from flaxformer_lab.functional.lightning_launches import LAUNCHES
from flaxformer_lab.functional.platform import target_device_kind, target_platform
from flaxformer_lab.functional.products import kernel_precision

Heads = Float[Array, "batch tokens heads head_dim"]
Values = Float[Array, "batch tokens heads value_dim"]
Decays = tuple[Array, Array, Array, Array]

# The number of tokens from which the kernels were measured to be faster than the blockwise form, by the device's name
# (`jax.devices()[0].device_kind`), with benchmarks/attention_length.py. Other devices do not use the kernels.
FASTER_FROM = {"NVIDIA H200": 1024}

# H200, batch 4, 32 heads of 128, bfloat16, 32k tokens, 2026-11-27: forward 2.80 ms where XLA's blocks took 19.6, with
# gradients 10.4 where those took 69.0. An earlier kernel (7.56 and 56.1) was faster than those from 1k tokens on.
# These measurements had 128 heads in a batch.
MIN_PROGRAMS = 128

# The largest block of tokens on a TPU.
TPU_BLOCK = 256
# The least blocks in a segment on a GPU: the states between segments take a fraction of the memory that tokens take.
MIN_BLOCKS = 8
# The lanes of a TPU: heads of a multiple of these can be read where they are.
LANES = 128
# The smallest block of numbers that the compilers for GPUs multiply.
MIN_FEATURES = 16


class Launch(NamedTuple):
    """How the kernel runs on a GPU.

    block: tokens in a block. columns: of the values in a program, which keeps head_dim x columns numbers as its state.
    programs: how many shall run at least; heads are cut into segments of tokens until there are as many.
    """

    block: int = 64
    columns: int = 64
    warps: int = 4
    stages: int = 2
    programs: int = 1024


def launch_of(device: str | None = None) -> Launch:
    """The launch for a device, by default the one that programs will run on."""
    return Launch(**LAUNCHES.get(device or target_device_kind(), {}))


def block_size(platform: str | None = None) -> int:
    """Tokens in a block of the kernel."""
    return launch_of().block if (platform or target_platform()) == "gpu" else TPU_BLOCK


def attend(
    query: Heads,
    key: Heads,
    value: Values,
    decays: Decays,
    *,
    reverse: bool = False,
    platform: str | None = None,
    launch: Launch | None = None,
    interpret: bool = False,
) -> Values:
    """Causal lightning attention in the values' dtype; sums are float32.

    decays: `lightning.block_decays` of a block in the same direction. reverse: each token sees itself and later tokens.
    platform: `gpu` or `tpu`, which decides the form; by default the platform in use. Every size works.
    """
    per_head = [decay[0] for decay in decays]
    if (platform or target_platform()) == "gpu":
        return _on_gpu(query, key, value, per_head, launch or launch_of(), reverse, interpret)
    return _on_tpu(query, key, value, per_head, reverse, interpret)


# ------------------------------------------------------------------------------------------------- on a GPU


def _on_gpu(query, key, value, decays, launch: Launch, reverse: bool, interpret: bool) -> Values:
    """Programs for each head, group of the values' columns, and segment of the tokens."""
    batch, tokens, heads, head_dim = query.shape
    size, value_dim = decays[0].shape[-1], value.shape[-1]
    columns = min(_power_of_two(value_dim), launch.columns)
    groups, blocks = pl.cdiv(value_dim, columns), pl.cdiv(tokens, size)
    of_segment = max(pl.cdiv(blocks, pl.cdiv(launch.programs, batch * heads * groups)), min(MIN_BLOCKS, blocks))
    segments = pl.cdiv(blocks, of_segment)
    shape = _Shape(tokens, heads, head_dim, value_dim, size, columns, blocks, of_segment, reverse)
    call = functools.partial(_call, shape, launch, (batch * heads, groups, segments), interpret)
    state_shape = (batch * heads, segments, _power_of_two(head_dim), groups * columns)
    if segments == 1:
        state = jnp.zeros(state_shape, jnp.float32)
    else:
        added = call(_state_kernel, (*decays[2:], key, value), jax.ShapeDtypeStruct(state_shape, jnp.float32))
        state = _states_before(added, decays[3][:, 0, 0] ** of_segment, reverse)
    return call(_output_kernel, (*decays, query, key, value, state), jax.ShapeDtypeStruct(value.shape, value.dtype))


def _states_before(
    added: Float[Array, "programs segments head_dim value_dim"], decay: Float[Array, " heads"], reverse: bool
) -> Float[Array, "programs segments head_dim value_dim"]:
    """The state in which each segment begins: what those before it added, decayed by the segments between."""
    place = jnp.arange(added.shape[1])
    distance = place[:, None] - place[None, :] - 1
    distance = distance.T if reverse else distance
    distance = distance[None]
    weights = jnp.where(distance >= 0, decay[:, None, None] ** jnp.maximum(distance, 0), 0)
    weights = jnp.tile(weights, (len(added) // len(decay), 1, 1))
    return jnp.einsum("pab,pbde->pade", weights, added, precision=jax.lax.Precision.HIGHEST)


class _Shape(NamedTuple):
    tokens: int
    heads: int
    head_dim: int
    value_dim: int
    size: int  # of a block
    columns: int
    blocks: int
    of_segment: int  # blocks
    reverse: bool


class _Program:
    """What one program works on: a head of an example, some columns of its values, and a segment of its tokens."""

    def __init__(self, shape: _Shape):
        self._shape = shape
        self.number, self.segment = pl.program_id(0), pl.program_id(2)
        self._example, self.head = jax.lax.div(self.number, shape.heads), jax.lax.rem(self.number, shape.heads)
        self._column = pl.program_id(1) * shape.columns
        self._first_block = self.segment * shape.of_segment
        self.width = _power_of_two(shape.head_dim)

    def for_each_block(self, step, state: Array) -> Array:
        """step(state, first token of the block) -> state, over the segment's blocks in order."""
        of_segment, reverse = self._shape.of_segment, self._shape.reverse

        def at(number, state):
            block = self._first_block + (of_segment - 1 - number if reverse else number)
            return step(state, block * self._shape.size)

        return jax.lax.fori_loop(0, of_segment, at, state)

    def load_head(self, ref, start: Array) -> Array:
        """A block of queries or keys, [size, width], zeros outside the array."""
        return self._load(ref, start, 0, self.width, self._shape.head_dim)

    def load_values(self, ref, start: Array) -> Array:
        """A block of the program's columns of the values."""
        return self._load(ref, start, self._column, self._shape.columns, self._shape.value_dim)

    def store_values(self, ref, start: Array, x: Array) -> None:
        from jax.experimental.pallas import triton

        columns = self._shape.columns
        inside = self._inside(start, self._column, columns, self._shape.value_dim)
        triton.store(self._at(ref, start, self._column, columns), x.astype(ref.dtype), mask=inside)

    def state(self, ref):
        """The program's state, as a reference."""
        return ref.at[self.number, self.segment, :, pl.ds(self._column, self._shape.columns)]

    def _load(self, ref, start, first, width, features) -> Array:
        from jax.experimental.pallas import triton

        inside = self._inside(start, first, width, features)
        options = {} if inside is None else {"mask": inside, "other": 0}
        return triton.load(self._at(ref, start, first, width), **options)

    def _at(self, ref, start, first, width):
        return ref.at[self._example, pl.ds(start, self._shape.size), self.head, pl.ds(first, width)]

    def _inside(self, start, first, width, features) -> Array | None:
        """Which numbers of a block lie inside the array; None where all do."""
        shape = self._shape
        if shape.tokens == shape.blocks * shape.size and shape.blocks % shape.of_segment == 0 and features % width == 0:
            return None
        rows = start + jax.lax.broadcasted_iota(jnp.int32, (shape.size, width), 0)
        columns = first + jax.lax.broadcasted_iota(jnp.int32, (shape.size, width), 1)
        return (rows < shape.tokens) & (columns < features)


def _call(shape: _Shape, launch: Launch, grid, interpret: bool, kernel, inputs, output):
    from jax.experimental.pallas import triton

    parameters = triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages)
    return pl.pallas_call(
        functools.partial(kernel, shape),
        out_shape=output,
        grid=grid,
        interpret=interpret,
        compiler_params=None if interpret else parameters,
    )(*inputs)


def _state_kernel(shape: _Shape, key_decay_ref, block_decay_ref, key_ref, value_ref, state_ref):
    """The state that a segment adds."""
    program = _Program(shape)
    key_decay, block_decay = key_decay_ref[program.head], block_decay_ref[program.head]

    def step(state, start):
        key, value = program.load_head(key_ref, start), program.load_values(value_ref, start)
        return _next_state(state, key, value, key_decay, block_decay)

    initial = jnp.zeros((program.width, shape.columns), jnp.float32)
    program.state(state_ref)[...] = program.for_each_block(step, initial)


def _output_kernel(
    shape: _Shape,
    mask_ref,
    query_decay_ref,
    key_decay_ref,
    block_decay_ref,
    query_ref,
    key_ref,
    value_ref,
    state_ref,
    output_ref,
):
    """The outputs of a segment, from the state in which it begins."""
    program = _Program(shape)
    decays = [ref[program.head] for ref in (mask_ref, query_decay_ref, key_decay_ref, block_decay_ref)]

    def step(state, start):
        query, key = program.load_head(query_ref, start), program.load_head(key_ref, start)
        value = program.load_values(value_ref, start)
        output, state = _block_step(state, decays, query, key, value)
        program.store_values(output_ref, start, output)
        return state

    program.for_each_block(step, program.state(state_ref)[...])


def _power_of_two(features: int) -> int:
    """The least power of two that holds the features and that a GPU multiplies."""
    return max(MIN_FEATURES, 1 << (features - 1).bit_length())


# ------------------------------------------------------------------------------------------------- on a TPU


def _on_tpu(query, key, value, decays, reverse: bool, interpret: bool) -> Values:
    """A program for each block, in order, of each head of each example."""
    from jax.experimental.pallas import tpu

    batch, tokens, heads, _ = query.shape
    size = decays[0].shape[-1]
    blocks = pl.cdiv(tokens, size)
    # [batch, tokens, heads * features]: whole lanes of a head are read where they are.
    arrays = [_in_lanes(x, blocks * size) for x in (query, key, value)]
    order = lambda block: blocks - 1 - block if reverse else block  # noqa: E731

    def of_head(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, *x.shape[1:]), lambda program, block: (program % heads, 0, 0))

    def of_block(x: Array) -> pl.BlockSpec:
        index = lambda program, block: (program // heads, order(block), program % heads)  # noqa: E731
        return pl.BlockSpec((None, size, x.shape[2] // heads), index)

    state_shape = (arrays[1].shape[2] // heads, arrays[2].shape[2] // heads)
    output = pl.pallas_call(
        _tpu_kernel,
        out_shape=jax.ShapeDtypeStruct(arrays[2].shape, value.dtype),
        grid=(batch * heads, blocks),
        in_specs=[*map(of_head, decays), *map(of_block, arrays)],
        out_specs=of_block(arrays[2]),
        scratch_shapes=[tpu.VMEM(state_shape, jnp.float32)],
        interpret=interpret,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )(*decays, *arrays)
    return output.reshape(batch, blocks * size, heads, -1)[:, :tokens, :, : value.shape[-1]]


def _in_lanes(x: Heads, tokens: int) -> Float[Array, "batch {tokens} columns"]:
    """Tokens by the features of all heads, where each head has whole lanes; zeros fill the last block and lanes."""
    batch, length, _, features = x.shape
    return jnp.pad(x, ((0, 0), (0, tokens - length), (0, 0), (0, -features % LANES))).reshape(batch, tokens, -1)


def _tpu_kernel(
    mask_ref, query_decay_ref, key_decay_ref, block_decay_ref, query_ref, key_ref, value_ref, output_ref, state_ref
):
    @pl.when(pl.program_id(1) == 0)
    def _():
        state_ref[...] = jnp.zeros_like(state_ref)

    decays = [ref[...] for ref in (mask_ref, query_decay_ref, key_decay_ref, block_decay_ref)]
    block = (ref[...] for ref in (query_ref, key_ref, value_ref))
    output, state_ref[...] = _block_step(state_ref[...], decays, *block)
    output_ref[...] = output.astype(output_ref.dtype)


# ---------------------------------------------------------------------------------------- one block, on both


def _block_step(state: Array, decays: list[Array], query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """One block: O = ((Q K^T) * M) V + Lq Q KV and the next KV."""
    mask, query_decay, key_decay, block_decay = decays
    # The precision of the inputs, for the state too: in TF32 it made the forward pass 1.4 times as long on an H200.
    product = functools.partial(_product, precision=kernel_precision(query))
    scores = product(query, key, 1, 1) * mask
    output = product(scores.astype(value.dtype), value, 1, 0)
    output += query_decay * product(query, state.astype(query.dtype), 1, 0)
    return output, _next_state(state, key, value, key_decay, block_decay)


def _next_state(state: Array, key: Array, value: Array, key_decay: Array, block_decay: Array) -> Array:
    """lambda^B KV + (Lk K)^T V."""
    weighted = (key.astype(jnp.float32) * key_decay).astype(value.dtype)
    return block_decay * state + _product(weighted, value, 0, 0, precision=kernel_precision(key))


def _product(a: Array, b: Array, axis_a: int, axis_b: int, *, precision: jax.lax.Precision) -> Array:
    """a b summed over one axis of each, in float32."""
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)
