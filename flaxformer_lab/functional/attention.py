"""Token mixing and channel mixing as formulas on heads. Layout: [batch, tokens, heads, head_dim].

`valid` marks the tokens that are not padding; padding is never attended to. `window`: a token sees those less than this
many positions away, itself included. Softmax attention and its implementations are in `softmax_attention.py`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxformer_lab.functional.products import einsum, product, widened
from flaxformer_lab.functional.softmax import masked_softmax
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads

Heads = Float[Array, "batch tokens heads head_dim"]
Valid = Bool[Array, "batch tokens"]


def softmax_scores(
    query: Heads, key: Float[Array, "batch keys kv_heads head_dim"]
) -> Float[Array, "batch heads tokens keys"]:
    """Q K^T / sqrt(head_dim), before any mask; float32."""
    return product("bqhd,bkhd->bhqk", query, repeat_kv_heads(key, query.shape[2])) * query.shape[-1] ** -0.5


def softmax_weights(
    query: Heads,
    key: Float[Array, "batch keys kv_heads head_dim"],
    *,
    causal: bool = False,
    valid: Bool[Array, "batch keys"] | None = None,
    window: int | None = None,
) -> Float[Array, "batch heads tokens keys"]:
    """softmax(Q K^T / sqrt(head_dim)), the weights that `softmax_attention` applies; float32."""
    return masked_softmax(softmax_scores(query, key), causal=causal, valid=valid, window=window)


def static_weights(
    scores: Float[Array, "heads max_tokens max_tokens"],
    tokens: int,
    *,
    causal: bool = False,
    valid: Valid | None = None,
    window: int | None = None,
) -> Float[Array, "batch heads {tokens} {tokens}"]:
    """Learned weights that do not see the input (random Synthesizer, Tay et al. 2021, eq. 6); batch is 1 without valid.

    The weights are those of the first `tokens` of the `max_tokens` positions.
    """
    batch = 1 if valid is None else valid.shape[0]
    scores = scores[:, :tokens, :tokens].astype(jnp.float32)
    scores = jnp.broadcast_to(scores, (batch, *scores.shape))
    return masked_softmax(scores, causal=causal, valid=valid, window=window)


def mean_weights(
    batch: int, tokens: int, *, causal: bool = False, valid: Valid | None = None, window: int | None = None
) -> Float[Array, "{batch} 1 {tokens} {tokens}"]:
    """Equal weights over the visible tokens."""
    return masked_softmax(jnp.zeros((batch, 1, tokens, tokens)), causal=causal, valid=valid, window=window)


@functools.partial(jax.jit, static_argnames=("causal", "window"))
def mean_attention(
    value: Float[Array, "batch tokens heads value_dim"],
    *,
    causal: bool = False,
    valid: Valid | None = None,
    window: int | None = None,
) -> Float[Array, "batch tokens heads value_dim"]:
    """The mean of the visible tokens, in time linear in tokens; the same as applying `mean_weights`."""
    batch, tokens = value.shape[:2]
    seen = jnp.ones((batch, tokens)) if valid is None else valid.astype(jnp.float32)
    seen = seen[:, :, None, None]
    total, count = (_visible_sum(x, causal, window) for x in (value.astype(jnp.float32) * seen, seen))
    return jnp.broadcast_to(total / jnp.maximum(count, 1), value.shape).astype(value.dtype)


def _visible_sum(x: Float[Array, "batch tokens heads features"], causal: bool, window: int | None):
    """For each token, the sum over the tokens visible to it."""
    if window is None:
        return jnp.cumsum(x, axis=1) if causal else jnp.sum(x, axis=1, keepdims=True)
    behind = _window_sum(x, min(window, x.shape[1]))
    if causal:
        return behind
    ahead = jnp.flip(_window_sum(jnp.flip(x, axis=1), min(window, x.shape[1])), axis=1)
    return behind + ahead - x  # the token itself is in both


def _window_sum(x: Float[Array, "batch tokens heads features"], window: int):
    """The sum of each token and the `window` - 1 before it.

    With tokens in blocks of `window`, it is a prefix sum of the token's block plus a suffix sum of the block before
    (van Herk 1992): sums of at most `window` terms, so rounding does not grow with the sequence.
    """
    batch, tokens, *rest = x.shape
    blocks = -(-tokens // window)
    x = jnp.pad(x, ((0, 0), (window, blocks * window - tokens), (0, 0), (0, 0)))
    x = x.reshape(batch, blocks + 1, window, *rest)
    prefix, suffix = jnp.cumsum(x, axis=2), jnp.flip(jnp.cumsum(jnp.flip(x, axis=2), axis=2), axis=2)
    before = jnp.pad(suffix[:, :-1, 1:], ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))
    return (prefix[:, 1:] + before).reshape(batch, -1, *rest)[:, :tokens]


def apply_weights(
    weights: Float[Array, "#batch heads tokens keys"], value: Float[Array, "batch keys heads value_dim"]
) -> Float[Array, "batch tokens heads value_dim"]:
    """Each token becomes the weighted sum of the tokens that it attends to."""
    dtype, value = value.dtype, widened(value)
    if weights.shape[0] == 1:
        return apply_shared_weights(weights[0], value).astype(dtype)
    return einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value).astype(dtype)


@jax.custom_vjp
def apply_shared_weights(
    weights: Float[Array, "heads tokens keys"], value: Float[Array, "batch keys heads value_dim"]
) -> Float[Array, "batch tokens heads value_dim"]:
    """The same weights for every example; their gradient is summed over examples in float32."""
    return einsum("hqk,bkhd->bqhd", weights.astype(value.dtype), value)


def _shared_forward(weights, value):
    return apply_shared_weights(weights, value), (weights, value)


def _shared_backward(residuals, gradient):
    weights, value = residuals
    dvalue = einsum("hqk,bqhd->bkhd", weights.astype(value.dtype), gradient)
    return product("bqhd,bkhd->hqk", gradient, value).astype(weights.dtype), dvalue


apply_shared_weights.defvjp(_shared_forward, _shared_backward)


@jax.jit
def channel_weights(
    query: Heads, key: Heads, temperature: Float[Array, " heads"], *, valid: Valid | None = None
) -> Float[Array, "batch heads head_dim head_dim"]:
    """softmax(tau * K^T Q) over a head's features, Q and K L2-normalised along tokens (El-Nouby et al. 2021, eq. 3).

    Row e holds the weights with which output feature e sums the value's features; float32, 0 without a valid token.
    """
    if valid is not None:
        query, key = (jnp.where(valid[:, :, None, None], x, 0) for x in (query, key))
    # Normalised after the product: [head_dim, head_dim] values per head instead of [tokens, head_dim], twice.
    scores = product("bthe,bthd->bhed", query, key)
    scores = scores * _inverse_norm(query)[..., :, None] * _inverse_norm(key)[..., None, :]
    weights = jax.nn.softmax(scores * temperature[None, :, None, None], axis=-1)
    return weights if valid is None else jnp.where(jnp.any(valid, axis=1)[:, None, None, None], weights, 0)


def channel_attention(
    query: Heads, key: Heads, value: Heads, temperature: Float[Array, " heads"], *, valid: Valid | None = None
) -> Heads:
    """Attention over features instead of tokens: linear in tokens, quadratic in head_dim (El-Nouby et al. 2021)."""
    return apply_channel_weights(channel_weights(query, key, temperature, valid=valid), value)


def apply_channel_weights(weights: Float[Array, "batch heads head_dim head_dim"], value: Heads) -> Heads:
    """Each feature becomes the weighted sum of the features of its head."""
    return einsum("bhed,bthd->bthe", weights.astype(value.dtype), value)


def _inverse_norm(x: Heads) -> Float[Array, "batch heads head_dim"]:
    """One over the L2 norm along tokens of each feature."""
    return jax.lax.rsqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1) + 1e-12)
