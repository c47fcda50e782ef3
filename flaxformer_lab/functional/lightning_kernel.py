"""The forward pass of lightning attention as one Pallas kernel, for GPUs and TPUs.

One program runs over all blocks of tokens of one head of one example, and keeps the state KV in fast memory all the
while (Qin et al. 2024, algorithm 1). The gradient is the blockwise form's own, in `lightning.py`.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

# From how many tokens on the kernel was measured faster than the blockwise form, by the name of the device
# (`jax.devices()[0].device_kind`), with benchmarks/attention_length.py. A device that is not here does not use it.
FASTER_FROM: dict[str, int] = {}

# The smallest block of numbers that the compilers for GPUs multiply.
LEAST_FEATURES = 16

Decays = tuple[Array, Array, Array, Array]


def forward(
    query: Float[Array, "batch tokens heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads value_dim"],
    decays: Decays,
    *,
    interpret: bool = False,
) -> Float[Array, "batch tokens heads value_dim"]:
    """Causal lightning attention as float32. decays: [1, heads, ...] each, as `lightning.py` makes them for a block.

    Tokens are filled up to whole blocks, features to a power of two: zeros, which add nothing. So every size is served.
    """
    batch, tokens, heads, _ = query.shape
    size, value_dim = decays[0].shape[-1], value.shape[-1]
    filled = math.ceil(tokens / size) * size
    streams = [_heads_first(x, filled) for x in (query, key, value)]
    per_head = [decay[0] for decay in decays]
    of_head = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda program: (program % heads, 0, 0))  # noqa: E731
    of_program = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda program: (program, 0, 0))  # noqa: E731
    mixed = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct(streams[2].shape, jnp.float32),
        grid=(batch * heads,),
        in_specs=[*map(of_head, per_head), *map(of_program, streams)],
        out_specs=of_program(streams[2]),
        interpret=interpret,
        compiler_params=None if interpret else _compiler_params(),
    )(*per_head, *streams)
    mixed = mixed.reshape(batch, heads, filled, -1)[:, :, :tokens, :value_dim]
    return jnp.swapaxes(mixed, 1, 2)


def _kernel(pair_ref, enter_ref, leave_ref, across_ref, query_ref, key_ref, value_ref, mixed_ref):
    """All blocks of one head: O = ((Q K^T) * M) V + Lq Q KV, then KV <- lambda^B KV + (Lk K)^T V."""
    pair, enter, leave, across = (ref[...] for ref in (pair_ref, enter_ref, leave_ref, across_ref))
    size = pair.shape[0]

    def add(number, memory):
        rows = pl.ds(number * size, size)
        query, key, value = (ref[rows, :] for ref in (query_ref, key_ref, value_ref))
        scores = _product(query, key, 1, 1) * pair
        mixed = _product(scores.astype(value.dtype), value, 1, 0)
        mixed_ref[rows, :] = mixed + enter * _product(query.astype(jnp.float32), memory, 1, 0)
        weighed = (key.astype(jnp.float32) * leave).astype(value.dtype)
        return across * memory + _product(weighed, value, 0, 0)

    empty = jnp.zeros((query_ref.shape[1], value_ref.shape[1]), jnp.float32)
    jax.lax.fori_loop(0, query_ref.shape[0] // size, add, empty)


def _product(a: Array, b: Array, of_a: int, of_b: int) -> Array:
    """a b summed over one axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32)


def _heads_first(x: Float[Array, "batch tokens heads features"], tokens: int) -> Float[Array, "programs filled wide"]:
    """[batch x heads, tokens, features], filled up with zeros."""
    batch, length, heads, features = x.shape
    wide = max(LEAST_FEATURES, 1 << (features - 1).bit_length())
    x = jnp.pad(x, ((0, 0), (0, tokens - length), (0, 0), (0, wide - features)))
    return jnp.swapaxes(x, 1, 2).reshape(batch * heads, tokens, wide)


def _compiler_params():
    """On GPUs the kernel is compiled by Triton, which keeps the state in registers."""
    if jax.default_backend() != "gpu":
        return None
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=8, num_stages=2)
