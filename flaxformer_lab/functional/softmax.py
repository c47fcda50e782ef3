"""Softmax over the keys that a query may see: not those that come after it, not padding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_softmax(
    scores: Float[Array, "batch heads rows keys"],
    *,
    causal: bool,
    valid: Bool[Array, "batch tokens"] | None,
    first_row: int = 0,
) -> Float[Array, "batch heads rows keys"]:
    """Weights over the first keys of a sequence; row r is the query of token `first_row` + r.

    A row without any visible token gets equal weights, not NaN.
    """
    rows, keys = scores.shape[-2:]
    floor = jnp.finfo(scores.dtype).min
    if causal:
        seen = first_row + jnp.arange(rows)[:, None] >= jnp.arange(keys)[None, :]
        scores = jnp.where(seen[None, None], scores, floor)
    if valid is not None:
        scores = jnp.where(valid[:, None, None, :keys], scores, floor)
    return jax.nn.softmax(scores, axis=-1)
