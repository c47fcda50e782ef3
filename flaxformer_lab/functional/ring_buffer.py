"""A cache of past tokens with a fixed number of slots: the token at position p is in slot p mod slots.

With as many slots as a sequence has tokens nothing is overwritten; with as many as the window, each new token
overwrites the one that has just left the window. The heads of all examples share one axis, so that a cache is a batch
of matrices: products would transpose any other layout at each step, and copy one with separate axes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab.functional.products import product

Slots = Float[Array, "batch_kv_heads slots features"]


def slot_positions(position: Int[Array, " batch"], slots: int) -> Int[Array, "batch {slots}"]:
    """The position of the token in each slot after the one at `position` is written; negative for an empty slot."""
    return position[:, None] - (position[:, None] - jnp.arange(slots)[None]) % slots


def fill(x: Float[Array, "batch tokens kv_heads features"], lengths: Int[Array, " batch"], slots: int) -> Slots:
    """Slots after the first `lengths` tokens of each example; the content of empty slots is arbitrary."""
    tokens, features = x.shape[1], x.shape[3]
    if slots < tokens:
        held = jnp.maximum(slot_positions(lengths - 1, slots), 0)
        x = jnp.take_along_axis(x, held[:, :, None, None], axis=1)
    else:
        x = jnp.pad(x, ((0, 0), (0, slots - tokens), (0, 0), (0, 0)))
    return jnp.swapaxes(x, 1, 2).reshape(-1, slots, features)


def update(slots: Slots, x: Float[Array, "batch 1 kv_heads features"], position: Int[Array, " batch"]) -> Slots:
    """Writes the token at `position` into its slot."""
    number, size, features = slots.shape
    places = jnp.repeat(position % size, x.shape[2])
    return slots.at[jnp.arange(number), places].set(x.reshape(number, features))


def slot_scores(query: Float[Array, "batch 1 heads features"], key: Slots) -> Float[Array, "batch heads slots"]:
    """Q K^T / sqrt(head_dim) of one query, in float32; heads share the key's in groups."""
    batch, _, heads, features = query.shape
    grouped = query.reshape(key.shape[0], -1, features)
    scores = product("ngd,nsd->ngs", grouped, key)
    return scores.reshape(batch, heads, -1) * features**-0.5


def attend(
    scores: Float[Array, "batch heads slots"], value: Slots, seen: Bool[Array, "batch slots"]
) -> Float[Array, "batch 1 heads features"]:
    """The sum of the visible slots' values, weighted by the softmax of their scores."""
    batch, heads, slots = scores.shape
    scores = jnp.where(seen[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    grouped = weights.reshape(value.shape[0], -1, slots).astype(value.dtype)
    output = product("ngs,nse->nge", grouped, value)
    return output.reshape(batch, 1, heads, -1).astype(value.dtype)
