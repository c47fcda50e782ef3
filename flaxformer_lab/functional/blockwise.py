"""Softmax attention by blocks of queries and of keys, so that no array is quadratic in tokens.

Each block of queries loops over the blocks of keys that it may see and keeps a running maximum and a running sum
(Milakov and Gimelshein 2018); the backward pass recomputes the weights from these two (Dao et al. 2022, algorithms 1
and 4; loop order as in Dao 2023). Memory beyond the arguments is linear in tokens.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab.functional.blocks import join_blocks, split_blocks
from flaxformer_lab.functional.products import product
from flaxformer_lab.functional.softmax import visible

# Layout inside: queries [blocks, batch, kv_heads, group, size, head_dim], where a group is the query heads that share a
# key head; keys [blocks, batch, kv_heads, size, head_dim]. `q` and `k` are numbers of blocks.
QueryBlocks = Float[Array, "blocks batch kv_heads group size features"]
KeyBlocks = Float[Array, "blocks batch kv_heads size features"]
ValidBlocks = Bool[Array, "blocks batch size"]
Tree = Any  # a pytree of arrays


class Masks(NamedTuple):
    """Which keys a query may see, by their positions."""

    causal: bool
    window: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def blockwise_attention(
    query: Float[Array, "batch tokens heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    value: Float[Array, "batch keys kv_heads value_dim"],
    valid: Bool[Array, "batch keys"] | None,
    causal: bool,
    window: int | None = None,
    block: int = 512,
    first: Int[Array, ""] | int = 0,
) -> Float[Array, "batch tokens heads value_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V, exact, with float32 scores and sums; kv_heads divides heads.

    first: the position of the first query among the keys, for queries that are a shard of a sequence.
    """
    return _forward(query, key, value, valid, causal, window, block, first)[0]


def _forward(query, key, value, valid, causal, window, block, first):
    tokens = query.shape[1]
    valid_blocks = _valid_blocks(valid, key.shape[1], query.shape[0], block)
    queries, values = _group_queries(query, key.shape[2], block), split_blocks(value, block)
    key_t = _transpose(split_blocks(key, block))

    def attend(q: Int[Array, ""]):
        start = first + q * block

        def step(masks: Masks, k: Int[Array, ""], carry: tuple[Array, Array, Array]):
            output, row_max, row_sum = carry
            scores = _scores(queries[q], key_t[k], _block(valid_blocks, k), start, k, masks)
            new_max = jnp.maximum(row_max, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new_max), jnp.exp(row_max - new_max)
            update = product("bgrqk,bgkd->bgrqd", weights.astype(value.dtype), values[k])
            return output * shrink + update, new_max, row_sum * shrink + jnp.sum(weights, axis=-1, keepdims=True)

        rows = queries.shape[1:-1]
        # The lowest finite number, as for a masked key: what a row sums up before its first visible key is multiplied
        # by exp(lowest - score) = 0 at that key.
        lowest = jnp.full((*rows, 1), jnp.finfo(jnp.float32).min)
        initial = (jnp.zeros((*rows, value.shape[-1])), lowest, jnp.zeros((*rows, 1)))
        output, row_max, row_sum = _loop_over_visible(start, len(values), block, Masks(causal, window), step, initial)
        return (output / row_sum).astype(value.dtype), row_max, 1 / row_sum

    outputs, row_maxes, inverse_sums = jax.lax.map(attend, jnp.arange(len(queries)))
    residuals = (query, key, value, valid, first, outputs, row_maxes, inverse_sums)
    return _ungroup_queries(outputs, tokens), residuals


def _backward(causal, window, block, residuals, gradient):
    """With P the weights: dV = P^T dO, dS = P (dO V^T - rowsum(dO O)) / sqrt(head_dim), dQ = dS K, dK = dS^T Q.

    A row of P is a row of exp(scores - max) times that row's inverse sum; dO is multiplied by it, which has fewer
    columns. dV^T = dO^T P and dK^T = Q^T dS use P and dS in their layout; their transposes would be copied.
    """
    query, key, value, valid, first, outputs, row_maxes, inverse_sums = residuals
    scale = query.shape[-1] ** -0.5
    valid_blocks = _valid_blocks(valid, key.shape[1], query.shape[0], block)
    queries = _group_queries(query, key.shape[2], block)
    keys, values = split_blocks(key, block), split_blocks(value, block)
    keys_t, values_t = _transpose(keys), _transpose(values)
    gradients = _group_queries(gradient, key.shape[2], block) * inverse_sums
    deltas = jnp.sum(gradients * outputs, axis=-1, keepdims=True)
    gradients = gradients.astype(gradient.dtype)

    def attend(totals: tuple[Array, Array], q: Int[Array, ""]):
        start = first + q * block

        def step(masks: Masks, k: Int[Array, ""], carry: tuple[Array, Array, Array]):
            dq, dks, dvs = carry
            scores = _scores(queries[q], keys_t[k], _block(valid_blocks, k), start, k, masks)
            weights = jnp.exp(scores - row_maxes[q])
            dp = product("bgrqd,bgdk->bgrqk", gradients[q], values_t[k])
            ds = (weights * (dp - deltas[q]) * scale).astype(query.dtype)
            weights = weights.astype(value.dtype)
            dq += product("bgrqk,bgkd->bgrqd", ds, keys[k])
            dks = dks.at[k].add(product("bgrqd,bgrqk->bgdk", queries[q], ds))
            dvs = dvs.at[k].add(product("bgrqd,bgrqk->bgdk", gradients[q], weights))
            return dq, dks, dvs

        initial = (jnp.zeros(queries.shape[1:]), *totals)
        dq, *totals = _loop_over_visible(start, len(keys), block, Masks(causal, window), step, initial)
        return tuple(totals), dq.astype(query.dtype)

    initial = (jnp.zeros(keys_t.shape), jnp.zeros(values_t.shape))
    (dks, dvs), dqs = jax.lax.scan(attend, initial, jnp.arange(len(queries)))
    dks, dvs = _transpose(dks).astype(key.dtype), _transpose(dvs).astype(value.dtype)
    dk, dv = (join_blocks(x, key.shape[1]) for x in (dks, dvs))
    return _ungroup_queries(dqs, query.shape[1]), dk, dv, None, None


blockwise_attention.defvjp(_forward, _backward)


def _loop_over_visible(
    start: Int[Array, ""], blocks: int, size: int, masks: Masks, step: Callable[..., Tree], carry: Tree
) -> Tree:
    """Applies step(masks, k, carry) -> carry to the blocks of keys visible to the block of queries at token `start`.

    Most blocks are fully visible; for these `step` gets no masks, which would cost as much as the softmax.
    """
    first, last = full_start, full_end = 0, blocks
    last_row = start + size - 1  # beyond all keys where the last block is padded
    if masks.causal:
        last = jnp.minimum(blocks, last_row // size + 1)
        full_end = (start + 1) // size
    if masks.window is not None:
        first = jnp.maximum(0, (start - (masks.window - 1)) // size)
        full_start = (last_row - masks.window) // size + 1
    if masks.window is not None and not masks.causal:
        last = jnp.minimum(blocks, (last_row + masks.window - 1) // size + 1)
        full_end = (start + masks.window) // size
    full_start = jnp.clip(full_start, first, last)
    full_end = jnp.clip(full_end, full_start, last)
    if masks.window is not None:
        carry = jax.lax.fori_loop(first, full_start, functools.partial(step, masks), carry)
    carry = jax.lax.fori_loop(full_start, full_end, functools.partial(step, Masks(False, None)), carry)
    if masks.causal or masks.window is not None:
        carry = jax.lax.fori_loop(full_end, last, functools.partial(step, masks), carry)
    return carry


def _scores(
    query: Float[Array, "batch kv_heads group rows head_dim"],
    key_t: Float[Array, "batch kv_heads head_dim keys"],
    valid: Bool[Array, "batch keys"] | None,
    start: Int[Array, ""],
    k: Int[Array, ""],
    masks: Masks,
) -> Float[Array, "batch kv_heads group rows keys"]:
    """Scaled scores of the queries from `start` on and a block of keys; masked keys get the lowest finite number."""
    rows, keys, lowest = query.shape[-2], key_t.shape[-1], jnp.finfo(jnp.float32).min
    scores = product("bgrqd,bgdk->bgrqk", query, key_t) * query.shape[-1] ** -0.5
    allowed = visible(start + jnp.arange(rows), k * keys + jnp.arange(keys), causal=masks.causal, window=masks.window)
    if allowed is not None:
        scores = jnp.where(allowed[None, None, None], scores, lowest)
    if valid is not None:
        scores = jnp.where(valid[:, None, None, None], scores, lowest)
    return scores


def _valid_blocks(valid: Bool[Array, "batch tokens"] | None, tokens: int, batch: int, size: int) -> ValidBlocks | None:
    """Which keys are neither invalid nor padding of the last block; None where all are valid."""
    if valid is None and tokens % size == 0:
        return None
    valid = jnp.ones((batch, tokens), bool) if valid is None else valid
    return split_blocks(valid[..., None, None], size)[:, :, 0, :, 0]


def _block(valid: ValidBlocks | None, k: Int[Array, ""]) -> Bool[Array, "batch size"] | None:
    return None if valid is None else valid[k]


def _transpose(x: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch columns rows"]:
    """Swaps the last two axes, once for all blocks: a product would copy an operand in another layout each time."""
    return jnp.swapaxes(x, -1, -2)


def _group_queries(x: Float[Array, "batch tokens heads features"], kv_heads: int, size: int) -> QueryBlocks:
    blocks = split_blocks(x, size)
    return blocks.reshape(*blocks.shape[:2], kv_heads, -1, *blocks.shape[3:])


def _ungroup_queries(x: QueryBlocks, tokens: int) -> Float[Array, "batch tokens heads features"]:
    return join_blocks(x.reshape(*x.shape[:2], -1, *x.shape[4:]), tokens)
