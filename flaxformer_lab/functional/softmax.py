"""Softmax over the keys that a query may see: not those that come after it, not padding, not those beyond a window."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@functools.partial(jax.jit, static_argnames=("causal", "window"))
def masked_softmax(
    scores: Float[Array, "batch heads rows keys"],
    *,
    causal: bool,
    valid: Bool[Array, "batch _"] | None,
    window: int | None = None,
) -> Float[Array, "batch heads rows keys"]:
    """Softmax of `masked_scores` over the keys. The weights of a row without any visible key are 0."""
    scores = masked_scores(scores, causal=causal, valid=valid, window=window)
    weights = jax.nn.softmax(scores, axis=-1)
    if valid is None:  # then every row sees a key
        return weights
    blind = jnp.max(scores, axis=-1, keepdims=True) <= jnp.finfo(scores.dtype).min
    return jnp.where(blind, 0, weights)


def masked_scores(
    scores: Float[Array, "batch heads rows keys"],
    *,
    causal: bool,
    valid: Bool[Array, "batch tokens"] | None,
    window: int | None = None,
    first_row: int = 0,
    first_key: int = 0,
) -> Float[Array, "batch heads rows keys"]:
    """Scores with the lowest finite number at every key that a query may not see.

    Row r is the query of token `first_row` + r, column k the key of token `first_key` + k.
    """
    rows, keys = scores.shape[-2:]
    minimum = jnp.finfo(scores.dtype).min
    seen = visible(first_row + jnp.arange(rows), first_key + jnp.arange(keys), causal=causal, window=window)
    if seen is not None:
        scores = jnp.where(seen[None, None], scores, minimum)
    if valid is not None:
        scores = jnp.where(valid[:, None, None, first_key : first_key + keys], scores, minimum)
    return scores


def sees_a_key(valid: Bool[Array, "batch keys"], *, causal: bool, window: int | None) -> Bool[Array, "batch _"]:
    """Whether each query sees any key, [batch, queries]; [batch, 1] where all queries see the same."""
    if not causal and window is None:
        return jnp.any(valid, axis=1, keepdims=True)
    tokens, count = valid.shape[1], jnp.cumsum(valid, axis=1, dtype=jnp.int32)
    up_to_last = count if causal else count[:, jnp.minimum(jnp.arange(tokens) + window - 1, tokens - 1)]
    before = 0 if window is None else jnp.pad(count, ((0, 0), (min(window, tokens), 0)))[:, :tokens]
    return up_to_last > before


def visible(
    rows: Int[Array, " rows"], keys: Int[Array, " keys"], *, causal: bool, window: int | None
) -> Bool[Array, "rows keys"] | None:
    """Whether a query position may see a key position; None where every query sees every key.

    window: w sees the positions less than w away, the token itself included.
    """
    if not causal and window is None:
        return None
    distance = rows[:, None] - keys[None, :]
    seen = distance >= 0 if causal else jnp.full(distance.shape, True)
    if window is not None:
        seen &= (distance < window) if causal else (jnp.abs(distance) < window)
    return seen
