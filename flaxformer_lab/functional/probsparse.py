"""ProbSparse attention: only the queries that single out some keys attend (Zhou et al. 2021, Informer).

A query that weighs all keys alike gives their mean, so it need not attend. How far a query is from that is measured on
a few sampled keys. Layout: [batch, tokens, heads, head_dim]; `valid` marks the keys that are not padding.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from flaxformer_lab.functional.products import einsum, product

Heads = Float[Array, "batch queries heads head_dim"]
KeyHeads = Float[Array, "batch keys heads head_dim"]
Valid = Bool[Array, "batch keys"]


def num_sampled(factor: float, tokens: int) -> int:
    """factor * ceil(ln tokens), from 1 to tokens: how many keys each query meets, and how many queries attend."""
    return max(1, min(int(factor * math.ceil(math.log(tokens))), tokens))


def sample_keys(key: Key[Array, ""], queries: int, keys: int, factor: float) -> Int[Array, "{queries} sampled"]:
    """The keys that each query meets, drawn with replacement; every example and head of a batch has the same."""
    return jax.random.randint(key, (queries, num_sampled(factor, keys)), 0, keys)


def sparsity(
    query: Heads, key: KeyHeads, sampled: Int[Array, "queries sampled"], valid: Valid | None = None
) -> Float[Array, "batch heads queries"]:
    """M(q) = max_j q.k_j - sum_j q.k_j / keys over the sampled keys j (section 3.1, and the authors' code); float32.

    The sum is divided by the number of all keys, not by that of the sampled ones. Padding is left out of all three.
    """
    queries, keys = query.shape[1], key.shape[1]
    times = jnp.zeros((queries, keys)).at[jnp.arange(queries)[:, None], sampled].add(1)[None, None]
    count = jnp.full((1, 1, 1), keys)
    if valid is not None:
        times = times * valid[:, None, None, :]
        count = jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None]
    # All products at once: on a few hundred tokens this is faster than a gather of the sampled keys.
    scores = product("bqhd,bkhd->bhqk", query, key)
    largest = jnp.max(jnp.where(times > 0, scores, jnp.finfo(jnp.float32).min), axis=-1)
    return largest - jnp.sum(scores * times, axis=-1) / count


class Attending(NamedTuple):
    """The queries that attend, by number, and their weights."""

    queries: Int[Array, "batch heads attending"]
    weights: Float[Array, "batch heads attending keys"]


def attending(
    query: Heads,
    key: KeyHeads,
    sampled: Int[Array, "queries sampled"],
    *,
    factor: float,
    causal: bool = False,
    valid: Valid | None = None,
    query_valid: Bool[Array, "batch queries"] | None = None,
) -> Attending:
    """The queries with the largest M, and their softmax weights over all keys that they may see.

    causal: no weight on later keys; which queries attend depends on all keys nevertheless.
    """
    lowest = jnp.finfo(jnp.float32).min
    measure = jax.lax.stop_gradient(sparsity(query, key, sampled, valid))
    if query_valid is not None:
        measure = jnp.where(query_valid[:, None], measure, lowest)
    chosen = jax.lax.top_k(measure, num_sampled(factor, query.shape[1]))[1]
    reduced = jnp.take_along_axis(jnp.swapaxes(query, 1, 2), chosen[..., None], axis=2)
    scores = product("bhqd,bkhd->bhqk", reduced, key) * query.shape[-1] ** -0.5
    if causal:
        scores = jnp.where(jnp.arange(key.shape[1])[None, None, None] <= chosen[..., None], scores, lowest)
    if valid is not None:
        scores = jnp.where(valid[:, None, None], scores, lowest)
    weights = jax.nn.softmax(scores, axis=-1)
    if valid is not None:
        weights = jnp.where(jnp.max(scores, axis=-1, keepdims=True) <= lowest, 0, weights)
    return Attending(chosen, weights)


def idle_weights(
    queries: int, keys: int, *, causal: bool, valid: Valid | None
) -> Float[Array, "#batch 1 {queries} {keys}"]:
    """Weights of the queries that do not attend: the mean of all keys, or with `causal` the sum of those up to it."""
    seen = jnp.ones((1, 1, 1, keys)) if valid is None else valid[:, None, None].astype(jnp.float32)
    if causal:
        return jnp.tril(jnp.broadcast_to(seen, (seen.shape[0], 1, queries, keys)))
    mean = seen / jnp.maximum(jnp.sum(seen, axis=-1, keepdims=True), 1)
    return jnp.broadcast_to(mean, (seen.shape[0], 1, queries, keys))


def probsparse_weights(
    query: Heads, key: KeyHeads, sampled: Int[Array, "queries sampled"], **options
) -> Float[Array, "batch heads queries keys"]:
    """The weights that `probsparse_attention` applies, of all queries; options as there."""
    chosen, weights = attending(query, key, sampled, **options)
    masks = {"causal": options.get("causal", False), "valid": options.get("valid")}
    idle = idle_weights(query.shape[1], key.shape[1], **masks)
    return _set_queries(jnp.broadcast_to(idle, (*chosen.shape[:2], *idle.shape[2:])), chosen, weights)


def probsparse_attention(
    query: Heads,
    key: KeyHeads,
    value: Float[Array, "batch keys heads value_dim"],
    sampled: Int[Array, "queries sampled"],
    *,
    causal: bool = False,
    valid: Valid | None = None,
    **options,
) -> Float[Array, "batch queries heads value_dim"]:
    """Softmax attention of the queries that attend; the others take the mean of the values (section 3.1).

    With `causal`, which needs as many queries as keys, they take the sum of the values up to their own, as in the
    authors' code.
    options: factor, and query_valid, as for `attending`.
    """
    chosen, weights = attending(query, key, sampled, causal=causal, valid=valid, **options)
    seen = value.astype(jnp.float32)
    count = seen.shape[1]
    if valid is not None:
        seen = seen * valid[:, :, None, None]
        count = jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None, None]
    idle = jnp.cumsum(seen, axis=1) if causal else jnp.sum(seen, axis=1, keepdims=True) / count
    idle = jnp.broadcast_to(idle, (seen.shape[0], query.shape[1], *seen.shape[2:])).astype(value.dtype)
    attended = einsum("bhqk,bkhd->bhqd", weights.astype(value.dtype), value)
    return jnp.swapaxes(_set_queries(jnp.swapaxes(idle, 1, 2), chosen, attended), 1, 2)


def _set_queries(
    x: Float[Array, "batch heads queries features"],
    chosen: Int[Array, "batch heads attending"],
    new: Float[Array, "batch heads attending features"],
) -> Float[Array, "batch heads queries features"]:
    """x with new rows at the chosen queries."""
    set_rows = lambda rows, places, values: rows.at[places].set(values, unique_indices=True)  # noqa: E731
    return jax.vmap(jax.vmap(set_rows))(x, chosen, new)
