"""What past tokens left, kept in a fixed number of slots: the token at position p is in slot p mod slots.

With as many slots as a sequence has tokens nothing is ever overwritten; with as many as a window is wide, each new
token takes the place of the one that has just gone out of sight.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Slots = Float[Array, "batch slots kv_heads features"]


def held_positions(position: Int[Array, " batch"], slots: int) -> Int[Array, "batch {slots}"]:
    """The position of the token in each slot, once the one at `position` is written; below 0 where a slot is empty."""
    return position[:, None] - (position[:, None] - jnp.arange(slots)[None]) % slots


def filled(x: Float[Array, "batch tokens kv_heads features"], lengths: Int[Array, " batch"], slots: int) -> Slots:
    """Slots as they are after the first `lengths` tokens of each example; those that are empty hold anything."""
    if slots == x.shape[1]:
        return x
    held = jnp.maximum(held_positions(lengths - 1, slots), 0)
    return jnp.take_along_axis(x, held[:, :, None, None], axis=1)


def written(slots: Slots, x: Float[Array, "batch 1 kv_heads features"], position: Int[Array, " batch"]) -> Slots:
    """Slots with the token at `position` in its place."""
    return slots.at[jnp.arange(len(x)), position % slots.shape[1]].set(x[:, 0])


def slot_scores(query: Float[Array, "batch 1 heads features"], key: Slots) -> Float[Array, "batch heads slots"]:
    """Q K^T / sqrt(head_dim) of one query, in float32; heads share the key's in groups."""
    grouped = query.reshape(query.shape[0], key.shape[2], -1, query.shape[3])
    scores = jnp.einsum("bgrd,bsgd->bgrs", grouped, key, preferred_element_type=jnp.float32)
    return scores.reshape(query.shape[0], query.shape[2], -1) * query.shape[-1] ** -0.5


def mixed(
    scores: Float[Array, "batch heads slots"], value: Slots, seen: Bool[Array, "batch slots"]
) -> Float[Array, "batch 1 heads features"]:
    """The values of the slots that are seen, weighed by the softmax of their scores."""
    scores = jnp.where(seen[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    grouped = weights.reshape(len(value), value.shape[2], -1, value.shape[1]).astype(value.dtype)
    output = jnp.einsum("bgrs,bsge->bgre", grouped, value, preferred_element_type=jnp.float32)
    return output.reshape(len(value), 1, -1, value.shape[3]).astype(value.dtype)
