"""Softmax over the keys that a query may see: not those that come after it, not padding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_softmax(
    scores: Float[Array, "batch heads rows keys"], *, causal: bool, valid: Bool[Array, "batch tokens"] | None
) -> Float[Array, "batch heads rows keys"]:
    """Weights over the keys of a sequence, as `masked_scores` allows them.

    A row without any visible token gets equal weights, not NaN.
    """
    return jax.nn.softmax(masked_scores(scores, causal=causal, valid=valid), axis=-1)


def masked_scores(
    scores: Float[Array, "batch heads rows keys"],
    *,
    causal: bool,
    valid: Bool[Array, "batch tokens"] | None,
    first_row: int = 0,
) -> Float[Array, "batch heads rows keys"]:
    """Scores with the least finite number at every key that a query may not see.

    The keys are the first ones of a sequence; row r is the query of token `first_row` + r.
    """
    rows, keys = scores.shape[-2:]
    floor = jnp.finfo(scores.dtype).min
    if causal:
        seen = first_row + jnp.arange(rows)[:, None] >= jnp.arange(keys)[None, :]
        scores = jnp.where(seen[None, None], scores, floor)
    if valid is not None:
        scores = jnp.where(valid[:, None, None, :keys], scores, floor)
    return scores
