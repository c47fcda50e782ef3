"""How good a ranking of all items is, for each example by itself: so averages over batches and devices are exact."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def recall_and_ndcg(
    scores: Float[Array, "*batch items"], relevant: Bool[Array, "*batch items"], top: int
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Of the `top` best items: the share of the relevant ones, and the discounted gain, each of the best possible.

    recall = hits / min(top, relevant); NDCG = sum over hits of 1 / log2(1 + rank), divided by that of the best order
    (Jarvelin and Kekalainen 2002). Of equal scores the first item ranks higher. 0 where nothing is relevant, NaN where
    a score is.
    """
    top = min(top, scores.shape[-1])
    _, best = jax.lax.top_k(scores, top)
    hits = jnp.take_along_axis(relevant, best, axis=-1).astype(jnp.float32)
    possible = jnp.minimum(jnp.sum(relevant, axis=-1), top)
    discounts = 1 / jnp.log2(jnp.arange(2, top + 2, dtype=jnp.float32))
    ideal = jnp.concatenate([jnp.zeros(1), jnp.cumsum(discounts)])[possible]
    gain = hits @ discounts
    broken = jnp.where(jnp.any(jnp.isnan(scores), axis=-1), jnp.nan, 0.0)
    return (
        jnp.sum(hits, axis=-1) / jnp.maximum(possible, 1) + broken,
        gain / jnp.maximum(ideal, discounts[0]) + broken,
    )
