"""Softmax attention on the CPU: blocks of query rows, which skip the keys that none of their rows may see.

Heads are moved to the front once, for the forward and the backward pass. The backward pass recomputes each block's
weights from each row's largest score and sum, so nothing quadratic in tokens is kept beyond one block (Dao et al. 2022,
section 3.1, without the blocks over keys).
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxformer_lab.functional.products import matmul, product
from flaxformer_lab.functional.softmax import masked_scores

Valid = Bool[Array, "batch keys"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def row_blocked_attention(
    query: Float[Array, "batch tokens heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads value_dim"],
    valid: Valid | None,
    causal: bool,
    window: int | None = None,
) -> Float[Array, "batch tokens heads value_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V, exact; the softmax is computed in float32.

    Without causality and window the keys may be of another sequence than the queries.
    """
    return _forward(query, key, value, valid, causal, window)[0]


@functools.partial(jax.jit, static_argnums=(4, 5))
def _forward(query, key, value, valid, causal, window):
    query, key, value = map(_swap, (query, key, value))
    outputs, row_maxes, inverse_sums = [], [], []
    for rows, seen in _blocks(query.shape[2], key.shape[2], causal, window):
        scores = _scores(query, key, valid, rows, seen, causal, window)
        row_max = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - row_max)
        row_sum = jnp.sum(weights, axis=-1, keepdims=True)
        # Divided after the product: [rows, value_dim] values instead of [rows, keys].
        outputs.append((matmul(weights.astype(value.dtype), value[:, :, seen]) / row_sum).astype(value.dtype))
        row_maxes.append(row_max)
        inverse_sums.append(1 / row_sum)
    output = jnp.concatenate(outputs, axis=2)
    # Two numbers per row, not one logarithm: a logarithm is lost beside the huge scores of a row that sees nothing.
    row_max, inverse_sum = (jnp.concatenate(x, axis=2) for x in (row_maxes, inverse_sums))
    return _swap(output), (query, key, value, valid, output, row_max, inverse_sum)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(causal, window, residuals, gradient):
    """With P the weights: dV = P^T dO, dS = P (dO V^T - rowsum(dO O)) / sqrt(head_dim), dQ = dS K, dK = dS^T Q.

    A row of P is a row of exp(scores - max) times that row's inverse sum; dO is multiplied by it, which has fewer
    columns. dV^T = dO^T P and dK^T = Q^T dS use P and dS in their layout; their transposes would be copied.
    """
    query, key, value, valid, output, row_max, inverse_sum = residuals
    gradient = _swap(gradient) * inverse_sum
    delta = jnp.sum(gradient * output, axis=-1, keepdims=True)
    gradient = gradient.astype(output.dtype)
    # Sums over blocks of rows, in float32 whatever the type.
    dk, dv = (jnp.zeros_like(jnp.swapaxes(x, 2, 3), jnp.float32) for x in (key, value))
    dq = []
    for rows, seen in _blocks(query.shape[2], key.shape[2], causal, window):
        scores = _scores(query, key, valid, rows, seen, causal, window)
        weights = jnp.exp(scores - row_max[:, :, rows])
        block_gradient = gradient[:, :, rows]
        dp = product("bhqd,bhkd->bhqk", block_gradient, value[:, :, seen])
        ds = weights * (dp - delta[:, :, rows]) * query.shape[-1] ** -0.5
        weights, ds = weights.astype(value.dtype), ds.astype(query.dtype)
        dq.append(matmul(ds, key[:, :, seen]))
        dk = dk.at[..., seen].add(product("bhqd,bhqk->bhdk", query[:, :, rows], ds))
        dv = dv.at[..., seen].add(product("bhqd,bhqk->bhdk", block_gradient, weights))
    dk, dv = (dx.transpose(0, 3, 1, 2).astype(x.dtype) for dx, x in ((dk, key), (dv, value)))
    return _swap(jnp.concatenate(dq, axis=2)), dk, dv, None


row_blocked_attention.defvjp(_forward, _backward)


def _blocks(tokens: int, keys: int, causal: bool, window: int | None = None) -> Iterator[tuple[slice, slice]]:
    """(query rows, keys that they may see): four or more blocks where rows see different keys, else one."""
    size = min(max(tokens // 4, 32), 256) if causal or window else tokens
    reach = max(tokens, keys) if window is None else window - 1
    for start in range(0, tokens, size):
        end = min(start + size, tokens)
        yield slice(start, end), slice(max(0, start - reach), end if causal else min(keys, end + reach))


def _scores(
    query: Float[Array, "batch heads tokens head_dim"],
    key: Float[Array, "batch heads keys head_dim"],
    valid: Valid | None,
    rows: slice,
    seen: slice,
    causal: bool,
    window: int | None,
) -> Float[Array, "batch heads rows _"]:
    scores = product("bhqd,bhkd->bhqk", query[:, :, rows], key[:, :, seen])
    options = {"causal": causal, "valid": valid, "window": window}
    scores = scores * query.shape[-1] ** -0.5
    return masked_scores(scores, **options, first_row=rows.start, first_key=seen.start)


def _swap(x: Float[Array, "batch a b features"]) -> Float[Array, "batch b a features"]:
    return jnp.swapaxes(x, 1, 2)
