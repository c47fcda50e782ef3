"""Softmax attention by blocks of queries and of keys, so that nothing quadratic in tokens ever exists.

Each block of queries walks over the blocks of keys that it may see and keeps a running maximum and a running sum
(Milakov and Gimelshein 2018); the backward pass makes the weights anew from these two (Dao et al. 2022, algorithms 1
and 4; the order of the loops as in Dao 2023). Memory beside the arguments is linear in tokens.
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

# Inside, arrays stand block by block: queries [blocks, batch, kv_heads, group, size, head_dim], where a group is the
# queries that share a key's head, and keys [blocks, batch, kv_heads, size, head_dim].
Rows = Float[Array, "blocks batch kv_heads group size features"]
Keys = Float[Array, "blocks batch kv_heads size features"]
Seen = Bool[Array, "blocks batch size"]
Tree = Any  # a pytree of arrays


class Masks(NamedTuple):
    """Which keys a query may see, by where the two stand."""

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

    first: where the first query stands among the keys, for queries that are a part of a sequence.
    """
    return _forward(query, key, value, valid, causal, window, block, first)[0]


def _forward(query, key, value, valid, causal, window, block, first):
    tokens = query.shape[1]
    seen = _seen(valid, key.shape[1], query.shape[0], block)
    queries, values = _grouped(query, key.shape[2], block), split_blocks(value, block)
    columns = _transposed(split_blocks(key, block))

    def attend(number: Int[Array, ""]):
        start = first + number * block

        def add(masks: Masks, other: Int[Array, ""], carry: tuple[Array, Array, Array]):
            mixed, largest, total = carry
            scores = _scores(queries[number], columns[other], _taken(seen, other), start, other, masks)
            new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new), jnp.exp(largest - new)
            arriving = product("bgrqk,bgkd->bgrqd", weights.astype(value.dtype), values[other])
            return mixed * shrink + arriving, new, total * shrink + jnp.sum(weights, axis=-1, keepdims=True)

        rows = queries.shape[1:-1]
        # The least finite number, as for a key that is not seen: what a row collects before it sees one key is
        # multiplied by exp(least - score) = 0 when it does.
        least = jnp.full((*rows, 1), jnp.finfo(jnp.float32).min)
        empty = (jnp.zeros((*rows, value.shape[-1])), least, jnp.zeros((*rows, 1)))
        mixed, largest, total = _walk(start, len(values), block, Masks(causal, window), add, empty)
        return (mixed / total).astype(value.dtype), largest, 1 / total

    outputs, largests, shares = jax.lax.map(attend, jnp.arange(len(queries)))
    residuals = (query, key, value, valid, first, outputs, largests, shares)
    return _ungrouped(outputs, tokens), residuals


def _backward(causal, window, block, residuals, gradient):
    """With P the weights: dV = P^T dO, dS = P (dO V^T - rowsum(dO O)) / sqrt(head_dim), dQ = dS K, dK = dS^T Q.

    A row of P is a row of exp(scores - largest) times that row's share; dO is multiplied by it here, which has fewer
    columns. dV^T = dO^T P and dK^T = Q^T dS take P and dS as they lie, where their own transposes would be copied.
    """
    query, key, value, valid, first, outputs, largests, shares = residuals
    scale = query.shape[-1] ** -0.5
    seen = _seen(valid, key.shape[1], query.shape[0], block)
    queries, keys, values = _grouped(query, key.shape[2], block), split_blocks(key, block), split_blocks(value, block)
    key_columns, value_columns = _transposed(keys), _transposed(values)
    gradients = _grouped(gradient, key.shape[2], block) * shares
    dots = jnp.sum(gradients * outputs, axis=-1, keepdims=True)
    gradients = gradients.astype(gradient.dtype)

    def attend(totals: tuple[Array, Array], number: Int[Array, ""]):
        start = first + number * block

        def add(masks: Masks, other: Int[Array, ""], carry: tuple[Array, Array, Array]):
            dq, dks, dvs = carry
            scores = _scores(queries[number], key_columns[other], _taken(seen, other), start, other, masks)
            weights = jnp.exp(scores - largests[number])
            dp = product("bgrqd,bgdk->bgrqk", gradients[number], value_columns[other])
            ds = (weights * (dp - dots[number]) * scale).astype(query.dtype)
            weights = weights.astype(value.dtype)
            dq += product("bgrqk,bgkd->bgrqd", ds, keys[other])
            dks = dks.at[other].add(product("bgrqd,bgrqk->bgdk", queries[number], ds))
            dvs = dvs.at[other].add(product("bgrqd,bgrqk->bgdk", gradients[number], weights))
            return dq, dks, dvs

        empty = (jnp.zeros(queries.shape[1:]), *totals)
        dq, *totals = _walk(start, len(keys), block, Masks(causal, window), add, empty)
        return tuple(totals), dq.astype(query.dtype)

    empty = (jnp.zeros(key_columns.shape), jnp.zeros(value_columns.shape))
    (dks, dvs), dqs = jax.lax.scan(attend, empty, jnp.arange(len(queries)))
    dks, dvs = _transposed(dks).astype(key.dtype), _transposed(dvs).astype(value.dtype)
    dk, dv = (join_blocks(x, key.shape[1]) for x in (dks, dvs))
    return _ungrouped(dqs, query.shape[1]), dk, dv, None, None


blockwise_attention.defvjp(_forward, _backward)


def _walk(start: Int[Array, ""], blocks: int, size: int, masks: Masks, add: Callable[..., Tree], carry: Tree) -> Tree:
    """add(masks, block, carry) -> carry over the blocks of keys that a block of queries may see from token `start` on.

    Most blocks are seen whole, by every query; there `add` is given no masks, for they cost as much as the softmax.
    """
    first, last = whole, edge = 0, blocks
    last_row = start + size - 1  # of a last block that is not full it may stand beyond all keys
    if masks.causal:
        last = jnp.minimum(blocks, last_row // size + 1)
        edge = (start + 1) // size
    if masks.window is not None:
        first = jnp.maximum(0, (start - (masks.window - 1)) // size)
        whole = (last_row - masks.window) // size + 1
    if masks.window is not None and not masks.causal:
        last = jnp.minimum(blocks, (last_row + masks.window - 1) // size + 1)
        edge = (start + masks.window) // size
    whole = jnp.clip(whole, first, last)
    edge = jnp.clip(edge, whole, last)
    if masks.window is not None:
        carry = jax.lax.fori_loop(first, whole, functools.partial(add, masks), carry)
    carry = jax.lax.fori_loop(whole, edge, functools.partial(add, Masks(False, None)), carry)
    if masks.causal or masks.window is not None:
        carry = jax.lax.fori_loop(edge, last, functools.partial(add, masks), carry)
    return carry


def _scores(
    query: Float[Array, "batch kv_heads group rows head_dim"],
    columns: Float[Array, "batch kv_heads head_dim keys"],
    seen: Bool[Array, "batch keys"] | None,
    start: Int[Array, ""],
    other: Int[Array, ""],
    masks: Masks,
) -> Float[Array, "batch kv_heads group rows keys"]:
    """Scaled scores of the queries from `start` on and a block of keys; the least finite number for a key not seen."""
    rows, keys, floor = query.shape[-2], columns.shape[-1], jnp.finfo(jnp.float32).min
    scores = product("bgrqd,bgdk->bgrqk", query, columns) * query.shape[-1] ** -0.5
    near = visible(start + jnp.arange(rows), other * keys + jnp.arange(keys), causal=masks.causal, window=masks.window)
    if near is not None:
        scores = jnp.where(near[None, None, None], scores, floor)
    if seen is not None:
        scores = jnp.where(seen[:, None, None, None], scores, floor)
    return scores


def _seen(valid: Bool[Array, "batch tokens"] | None, tokens: int, batch: int, size: int) -> Seen | None:
    """Which keys are neither padding nor fill of the last block; None where all are there."""
    if valid is None and tokens % size == 0:
        return None
    valid = jnp.ones((batch, tokens), bool) if valid is None else valid
    return split_blocks(valid[..., None, None], size)[:, :, 0, :, 0]


def _taken(seen: Seen | None, number: Int[Array, ""]) -> Bool[Array, "batch size"] | None:
    return None if seen is None else seen[number]


def _transposed(x: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch columns rows"]:
    """Once for all blocks: a product copies what does not lie as it wants, anew each time."""
    return jnp.swapaxes(x, -1, -2)


def _grouped(x: Float[Array, "batch tokens heads features"], kv_heads: int, size: int) -> Rows:
    blocks = split_blocks(x, size)
    return blocks.reshape(*blocks.shape[:2], kv_heads, -1, *blocks.shape[3:])


def _ungrouped(x: Rows, tokens: int) -> Float[Array, "batch tokens heads features"]:
    return join_blocks(x.reshape(*x.shape[:2], -1, *x.shape[4:]), tokens)
