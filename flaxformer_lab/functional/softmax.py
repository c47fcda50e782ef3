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
    """Softmax of `masked_scores` over the keys. A row without any visible key gets equal weights, not NaN."""
    return jax.nn.softmax(masked_scores(scores, causal=causal, valid=valid, window=window), axis=-1)


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
