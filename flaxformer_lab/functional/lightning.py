"""Lightning Attention-2 (Qin et al. 2024): attention without softmax whose weights decay with distance.

o_t = sum over s <= t of lambda^(t - s) (q_t . k_s) v_s with one decay lambda = exp(-slope) per head. Three forms give
the same numbers: naive (all pairs), recurrent (a state of constant size) and blockwise (all pairs inside a block, the
state between blocks), whose cost per token does not depend on the length. Layout: [batch, tokens, heads, head_dim].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab.functional import lightning_kernel
from flaxformer_lab.functional.blocks import scan_blocks
from flaxformer_lab.functional.choice import Choice, requested_choice
from flaxformer_lab.functional.platform import target_device_kind, target_platform
from flaxformer_lab.functional.products import product, widened

Heads = Float[Array, "batch tokens heads head_dim"]
Values = Float[Array, "batch tokens heads value_dim"]
Valid = Bool[Array, "batch tokens"]
Slopes = Float[Array, " heads"]
State = Float[Array, "batch heads head_dim value_dim"]

# Tokens in a block, by platform. At 32k tokens an H200 took 19.6 ms with blocks of 256 and 23.3 ms with 64.
BLOCK = {"cpu": 64, "gpu": 256, "tpu": 256}
IMPLEMENTATIONS = ("blockwise", "kernel", "interpreted kernel")
CONVENTIONS = ("transnormer", "minimax", "flash_linear_attention")


def make_slopes(convention: str, heads: int, layer: int, depth: int) -> Float[Array, "{heads}"]:
    """The slopes of a layer's heads, layers counted from 0; early layers decay fast, late ones slowly.

    transnormer: 2^(-8h/heads) (1 - layer/(depth - 1) + 1e-5), h from 1: ALiBi's slopes (Press et al. 2022) scaled by
    layer, for any number of heads (Qin et al. 2024). minimax: the same with 1 - layer/(depth - 1 + 1e-5) + 1e-5.
    flash_linear_attention: (8/heads)(1 - layer/depth) h, h from 0, for scores divided by sqrt(head_dim).

    Raises:
        ValueError: an unknown convention, or a layer outside 0 .. depth - 1.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"slopes={convention} is not one of {', '.join(CONVENTIONS)}")
    if not 0 <= layer < depth:
        raise ValueError(f"layer={layer} is not one of the {depth} layers, which count from 0")
    if convention == "flash_linear_attention":
        return 8 / heads * (1 - layer / depth) * jnp.arange(heads, dtype=jnp.float32)
    # A single layer counts as the first one.
    span = max(depth - 1, 1) + (1e-5 if convention == "minimax" else 0)
    return 2.0 ** (-8 * jnp.arange(1, heads + 1, dtype=jnp.float32) / heads) * (1 - layer / span + 1e-5)


def score_scale(convention: str, head_dim: int) -> float:
    """The factor by which a convention multiplies q . k."""
    return head_dim**-0.5 if convention == "flash_linear_attention" else 1.0


def lightning_attention(
    query: Heads,
    key: Heads,
    value: Values,
    slopes: Slopes,
    *,
    causal: bool = True,
    valid: Valid | None = None,
    block: int | None = None,
    implementation: str | None = None,
    explain: bool = False,
) -> Values | tuple[Values, Choice]:
    """Lightning attention, block by block and in time linear in tokens; sums are kept in float32.

    Without `causal` the weights are lambda^|t - s| (q_t . k_s): one pass in each direction, the diagonal counted once.
    block: tokens in a block; by default `block_size()`, or all of them where they are fewer. implementation: one of
        IMPLEMENTATIONS; by default `choose` selects one. explain: returns (output, Choice).

    Raises:
        ValueError: there are no tokens, queries, keys and values are not of one sequence, or the implementation is
            unknown.
    """
    if query.shape[1] == 0:
        raise ValueError("lightning_attention needs at least one token; the sequence is empty")
    if not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        raise ValueError(
            f"queries {query.shape}, keys {key.shape} and values {value.shape} are not one sequence, whose positions "
            "lightning_attention compares; give it as many tokens of each"
        )
    dtype, query, key, value = value.dtype, *map(widened, (query, key, value))
    choice = requested_choice(implementation, IMPLEMENTATIONS) if implementation else choose(query.shape, query.dtype)
    key = _zero_padding(key, valid)
    if block is None:  # a short sequence is one block of its own length, with nothing padded; a kernel has its sizes
        block = min(block_size(), query.shape[1]) if choice.name == "blockwise" else block_size()
    output = blockwise(query, key, value, slopes, block, choice.name)
    if not causal:
        backwards = blockwise(query, key, value, slopes, block, choice.name, True)
        diagonal = jnp.sum(query.astype(jnp.float32) * key.astype(jnp.float32), axis=-1, keepdims=True) * value
        output = output.astype(jnp.float32) + backwards - diagonal
    output = output.astype(dtype)
    return (output, choice) if explain else output


def block_size() -> int:
    """Tokens in a block, on the platform where the program will run."""
    return BLOCK[target_platform()]


def choose(shape: tuple[int, ...], dtype: DTypeLike, device: str | None = None) -> Choice:
    """The kernel where it was measured to be faster for this shape on this device, else the blockwise form."""
    (batch, tokens, heads, _), device = shape, device or target_device_kind()
    start, programs = lightning_kernel.FASTER_FROM.get(device), lightning_kernel.MIN_PROGRAMS
    if start is None:
        return Choice("blockwise", f"on {device} the kernel has not been measured to be faster")
    if jnp.dtype(dtype).itemsize != 2 or batch * heads < programs:
        measured = f"the kernel was measured in 16 bits with {programs} heads"
        return Choice("blockwise", f"on {device} {measured}, not in {jnp.dtype(dtype).name} with {batch} x {heads}")
    if tokens < start:
        return Choice("blockwise", f"on {device} the kernel is faster from {start} tokens on, not with {tokens}")
    return Choice("kernel", f"on {device} the kernel is faster from {start} tokens on")


def lightning_scores(
    query: Heads, key: Heads, slopes: Slopes, *, causal: bool = True, valid: Valid | None = None
) -> Float[Array, "batch heads tokens tokens"]:
    """(Q K^T) * M, by which `lightning_attention` multiplies the values: signed, with rows that need not sum to 1."""
    distance = jnp.arange(query.shape[1])[:, None] - jnp.arange(query.shape[1])[None, :]
    decay = jnp.exp(-slopes[:, None, None] * jnp.abs(distance)[None])
    decay = jnp.where((distance >= 0)[None], decay, 0) if causal else decay
    key = _zero_padding(key, valid)
    return product("bqhd,bkhd->bhqk", query, key) * decay[None]


def naive(
    query: Heads, key: Heads, value: Values, slopes: Slopes, *, causal: bool = True, valid: Valid | None = None
) -> Values:
    """O = ((Q K^T) * M) V with M_ts = lambda^(t - s): quadratic in tokens; defines what the other forms compute."""
    scores = lightning_scores(query, key, slopes, causal=causal, valid=valid)
    return product("bhqk,bkhd->bqhd", scores, value.astype(jnp.float32)).astype(value.dtype)


# ------------------------------------------------------------------------------------------------ recurrent


def recurrent(
    query: Heads,
    key: Heads,
    value: Values,
    slopes: Slopes,
    state: State | None = None,
    *,
    valid: Valid | None = None,
) -> tuple[Values, State]:
    """Token after token from `state`; returns the output and the state after the last token.

    KV_t = lambda KV_{t-1} + k_t v_t^T, o_t = q_t KV_t.
    """
    batch, _, heads, head_dim = query.shape
    state = jnp.zeros((batch, heads, head_dim, value.shape[-1])) if state is None else state
    tokens = (jnp.swapaxes(x, 0, 1) for x in (query, _zero_padding(key, valid), value))
    state, output = jax.lax.scan(lambda state, token: decode_step(*token, slopes, state)[::-1], state, tuple(tokens))
    return jnp.swapaxes(output, 0, 1), state


def decode_step(
    query: Float[Array, "batch heads head_dim"],
    key: Float[Array, "batch heads head_dim"],
    value: Float[Array, "batch heads value_dim"],
    slopes: Slopes,
    state: State,
) -> tuple[Float[Array, "batch heads value_dim"], State]:
    """One token of the recurrent form, at a cost that does not depend on the tokens before it."""
    outer = product("bhd,bhe->bhde", key, value)
    state = jnp.exp(-slopes)[None, :, None, None] * state + outer
    return product("bhd,bhde->bhe", query, state).astype(value.dtype), state


def init_state(key: Heads, value: Values, slopes: Slopes, lengths: Int[Array, " batch"]) -> State:
    """The state of `recurrent` after the first `lengths` tokens of each example."""
    distance = lengths[:, None] - 1 - jnp.arange(key.shape[1])[None]
    decay = jnp.exp(-slopes[None, None] * jnp.maximum(distance, 0)[:, :, None])
    weighted = key.astype(jnp.float32) * jnp.where(distance >= 0, 1.0, 0.0)[:, :, None, None] * decay[..., None]
    return product("bthd,bthe->bhde", weighted, value)


# ------------------------------------------------------------------------------------------------ blockwise


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def blockwise(
    query: Heads,
    key: Heads,
    value: Values,
    slopes: Slopes,
    block: int,
    implementation: str = "blockwise",
    reverse: bool = False,
) -> Float[Array, "batch tokens heads value_dim"]:
    """The causal form (Qin et al. 2024, algorithms 1, 2): block by block as float32, or a kernel in the values' dtype.

    Forward, KV = 0: O = ((Q K^T) * M) V + Lq Q KV, then KV <- lambda^B KV + (Lk K)^T V, where Lq = lambda^(i + 1) and
    Lk = lambda^(B - 1 - i) for the i-th of a block's B tokens. The slopes' gradient is computed where it is asked for.
    reverse: each token sees itself and later tokens.
    """
    return _forward(query, key, value, slopes, block, implementation, reverse)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _forward(query, key, value, slopes, block, implementation, reverse):
    if implementation != "blockwise":
        return _kernel(slopes, block, implementation)(query, key, value, reverse=reverse)
    decay_mask, query_decay, key_decay, block_decay = block_decays(slopes, block, reverse)

    def step(state: State, inputs: tuple[Array, Array, Array]):
        query, key, value = inputs
        scores = product("bhqd,bhkd->bhqk", query, key) * decay_mask
        output = product("bhqk,bhke->bhqe", scores.astype(value.dtype), value)
        output += query_decay * product("bhqd,bhde->bhqe", query, state)
        return block_decay * state + product("bhkd,bhke->bhde", key * key_decay, value), output

    return scan_blocks(step, _zero_state(query, value), (query, key, value), block, reverse=reverse)[1]


def _kernel(slopes: Slopes, block: int, implementation: str) -> Callable[..., Values]:
    """attend(query, key, value, *, reverse) of the kernel for given slopes."""
    size, interpret = min(block, lightning_kernel.block_size()), implementation == "interpreted kernel"

    def attend(query: Heads, key: Heads, value: Values, *, reverse: bool) -> Values:
        decays = block_decays(slopes, size, reverse)
        return lightning_kernel.attend(query, key, value, decays, reverse=reverse, interpret=interpret)

    return attend


def _forward_with_residuals(query, key, value, slopes, block, implementation, reverse):
    """Each argument has the value and whether a gradient of it is asked for."""
    arrays = [argument.value for argument in (query, key, value, slopes)]
    residuals = (*arrays, arrays[3] if slopes.perturbed else None)
    return _forward(*arrays, block, implementation, reverse), residuals


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(block, implementation, reverse, residuals, gradient):
    """The gradients of the inputs, and of the slopes where they are asked for."""
    query, key, value, slopes, differentiated = residuals
    arrays = (query, key, value, gradient.astype(value.dtype))
    if implementation == "blockwise":
        dq, dk, dv = _blockwise_gradients(*arrays, slopes, block, reverse)
    else:
        dq, dk, dv = _kernel_gradients(*arrays, _kernel(slopes, block, implementation), reverse)
    if differentiated is None:
        return dq, dk, dv, None
    # The output of a head depends on its own slope alone, so one pass forward gives all derivatives.
    outputs = lambda slopes: _forward(query, key, value, slopes, block, "blockwise", reverse)  # noqa: E731
    _, by_slope = jax.jvp(outputs, (slopes,), (jnp.ones_like(slopes),))
    return dq, dk, dv, jnp.sum(gradient * by_slope, axis=(0, 1, 3)).astype(slopes.dtype)


def _kernel_gradients(query, key, value, gradient, attend: Callable[..., Values], reverse: bool):
    """The kernel again: dQ in the order of the forward pass, dK and dV in the other order."""
    dq = attend(gradient, value, key, reverse=reverse)
    dk = attend(value, gradient, query, reverse=not reverse)
    dv = attend(key, query, gradient, reverse=not reverse)
    return dq.astype(query.dtype), dk.astype(key.dtype), dv.astype(value.dtype)


def _blockwise_gradients(query, key, value, gradient, slopes: Slopes, block: int, reverse: bool):
    """Inside a block dP = (dO V^T) * M, dQ = dP K, dK = dP^T Q, dV = ((Q K^T) * M)^T dO.

    Across blocks, a pass in order recomputes KV, for dQ += Lq dO KV^T; a pass in reverse carries D, the gradient of a
    block's final KV: dK += Lk V D^T, dV += (Lk K) D, then D <- lambda^B D + (Lq Q)^T dO.
    """
    decay_mask, query_decay, key_decay, block_decay = block_decays(slopes, block, reverse)

    def forward(state: State, inputs: tuple[Array, ...]):
        query, key, value, gradient = inputs
        dp = product("bhqe,bhke->bhqk", gradient, value) * decay_mask
        dq = product("bhqk,bhkd->bhqd", dp, key) + query_decay * product("bhqe,bhde->bhqd", gradient, state)
        return block_decay * state + product("bhkd,bhke->bhde", key * key_decay, value), dq.astype(query.dtype)

    def backward(dstate: State, inputs: tuple[Array, ...]):
        query, key, value, gradient = inputs
        dp = product("bhqe,bhke->bhqk", gradient, value) * decay_mask
        scores = product("bhqd,bhkd->bhqk", query, key) * decay_mask
        dk = product("bhqk,bhqd->bhkd", dp, query) + key_decay * product("bhke,bhde->bhkd", value, dstate)
        dv = product("bhqk,bhqe->bhke", scores, gradient) + product("bhkd,bhde->bhke", key * key_decay, dstate)
        dstate = block_decay * dstate + product("bhqd,bhqe->bhde", query * query_decay, gradient)
        return dstate, (dk.astype(key.dtype), dv.astype(value.dtype))

    initial, arrays = _zero_state(query, value), (query, key, value, gradient)
    _, dq = scan_blocks(forward, initial, arrays, block, reverse=reverse)
    _, (dk, dv) = scan_blocks(backward, initial, arrays, block, reverse=not reverse)
    return dq, dk, dv


blockwise.defvjp(_forward_with_residuals, _backward, symbolic_zeros=True)


def block_decays(slopes: Slopes, block: int, reverse: bool = False) -> tuple[Array, Array, Array, Array]:
    """M inside a block, Lq, Lk, and lambda^B, with axes that broadcast over [batch, heads, size, features].

    reverse: for tokens that see later tokens.
    """
    place = jnp.arange(block)[::-1] if reverse else jnp.arange(block)
    distance = place[:, None] - place[None, :]
    slopes = slopes.astype(jnp.float32)[:, None, None]
    decay_mask = jnp.where((distance >= 0)[None], jnp.exp(-slopes * jnp.maximum(distance, 0)[None]), 0)
    query_decay, key_decay = (jnp.exp(-slopes * x[None, :, None]) for x in (place + 1, block - 1 - place))
    return decay_mask[None], query_decay[None], key_decay[None], jnp.exp(-slopes * block)[None]


def _zero_state(query: Heads, value: Values) -> State:
    return jnp.zeros((query.shape[0], query.shape[2], query.shape[3], value.shape[3]))


def _zero_padding(key: Heads, valid: Valid | None) -> Heads:
    return key if valid is None else jnp.where(valid[:, :, None, None], key, 0)
