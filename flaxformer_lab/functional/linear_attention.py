"""Attention whose weights are products of positive features, so that its cost is linear in tokens.

o_t = phi(q_t) sum_s phi(k_s) v_s^T / (phi(q_t) . sum_s phi(k_s)) with phi = elu + 1 (Katharopoulos et al. 2020,
eqs. 5 to 9). Causal sums come from the blockwise form of `lightning.py` without decay.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab.functional import lightning
from flaxformer_lab.functional.choice import requested_choice
from flaxformer_lab.functional.products import einsum, product, widened

Heads = Float[Array, "batch tokens heads head_dim"]
Keys = Float[Array, "batch keys heads head_dim"]
Values = Float[Array, "batch keys heads value_dim"]
Valid = Bool[Array, "batch keys"]
Rope = Callable[[Heads], Heads]
# What later tokens need of all tokens so far: sums of phi(k) v^T and of phi(k).
State = tuple[Float[Array, "batch heads head_dim value_dim"], Float[Array, "batch heads head_dim"]]

# The least denominator, for a sum of weights that vanishes: where a query sees no key, or where its features and those
# of all keys are below 1e-9, phi(-20). The output is then 0. Its square is a normal float32.
MIN_DENOMINATOR = 1e-18


def positive(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """phi(x) = elu(x) + 1, in float32: e^x up to 0, where adding 1 to elu's e^x - 1 would cancel, and x + 1 above."""
    x = x.astype(jnp.float32)
    above = x > 0
    # The argument of the branch that is not taken must not overflow: its gradient is multiplied by 0.
    return jnp.where(above, x + 1, jnp.exp(jnp.where(above, 0, x)))


def identity(x: Heads) -> Heads:
    """x: features without positions."""
    return x


def linear_attention(
    query: Heads,
    key: Keys,
    value: Values,
    *,
    causal: bool = False,
    valid: Valid | None = None,
    apply_rope: Rope = identity,
    implementation: str | None = None,
) -> Float[Array, "batch tokens heads value_dim"]:
    """Linear attention; 0 where a query sees no key.

    apply_rope: rotary positions, applied to the features of the numerator alone. Rotated numerators over plain
    denominators are eq. 19 of Su et al. 2021: the sum of weights stays above 0.
    implementation: of causal sums, one of lightning.IMPLEMENTATIONS; by default `lightning.choose` selects one.

    Raises:
        ValueError: there are no tokens, causal queries and keys are not of one sequence, or the implementation is
            unknown.
    """
    if query.shape[1] == 0 or key.shape[1] == 0:
        raise ValueError("linear_attention needs at least one token; the sequence is empty")
    if causal and query.shape[1] != key.shape[1]:
        raise ValueError(
            f"{query.shape[1]} queries and {key.shape[1]} keys are not one sequence, so causal=True cannot compare "
            "their positions; use causal=False"
        )
    dtype, value = value.dtype, widened(value)
    query, key = _features(query, key, valid)
    if causal:
        choice = (
            requested_choice(implementation, lightning.IMPLEMENTATIONS)
            if implementation
            else lightning.choose(query.shape, value.dtype)
        )
        numerator, denominator = _causal_sums(query, key, value, apply_rope, choice.name)
    else:
        numerator, denominator = _bidirectional_sums(query, key, value, apply_rope)
    return (numerator / jnp.maximum(denominator, MIN_DENOMINATOR)).astype(dtype)


def _bidirectional_sums(query: Heads, key: Keys, value: Values, apply_rope: Rope):
    """Every token sees the same sums."""
    state = product("bthd,bthe->bhde", _rotated(apply_rope, key, value), value)
    numerator = product("bthd,bhde->bthe", _rotated(apply_rope, query, value), state)
    return numerator, _dot(query, jnp.sum(key, axis=1, keepdims=True))


def _causal_sums(query: Heads, key: Keys, value: Values, apply_rope: Rope, implementation: str):
    """Every token sees the sums up to itself."""
    options = (jnp.zeros(query.shape[2]), lightning.block_size(), implementation)  # no decay
    rotated = (_rotated(apply_rope, x, value) for x in (query, key))
    numerator = lightning.blockwise(*rotated, value, *options)
    if implementation == "blockwise":
        return numerator, _dot(query, jnp.cumsum(key, axis=1))
    # The same sums of values that are 1: a cumulative sum would be as large as the keys in float32.
    plain = (x.astype(value.dtype) for x in (query, key))
    denominator = lightning.blockwise(*plain, jnp.ones_like(value[..., :1]), *options)
    return numerator.astype(jnp.float32), denominator.astype(jnp.float32)


def linear_weights(
    query: Heads, key: Keys, *, causal: bool = False, valid: Valid | None = None, apply_rope: Rope = identity
) -> Float[Array, "batch heads tokens keys"]:
    """The weights by which `linear_attention` multiplies the values; rows sum to 1 unless the numerator is rotated."""
    query, key = _features(query, key, valid)
    seen = jnp.ones((query.shape[1], key.shape[1]), bool)
    seen = jnp.tril(seen) if causal else seen
    numerator, denominator = (
        jnp.where(seen[None, None], einsum("bqhd,bkhd->bhqk", *pair), 0)
        for pair in ((apply_rope(query), apply_rope(key)), (query, key))
    )
    return numerator / jnp.maximum(jnp.sum(denominator, axis=-1, keepdims=True), MIN_DENOMINATOR)


def init_state(key: Keys, value: Values, lengths: Int[Array, " batch"], *, apply_rope: Rope = identity) -> State:
    """The state after the first `lengths` tokens of each example."""
    valid = jnp.arange(key.shape[1])[None] < lengths[:, None]
    _, key = _features(key, key, valid)
    return product("bthd,bthe->bhde", apply_rope(key), value.astype(jnp.float32)), jnp.sum(key, axis=1)


def decode_step(
    query: Float[Array, "batch 1 heads head_dim"],
    key: Float[Array, "batch 1 heads head_dim"],
    value: Float[Array, "batch 1 heads value_dim"],
    state: State,
    *,
    apply_rope: Rope = identity,
) -> tuple[Float[Array, "batch 1 heads value_dim"], State]:
    """One more token, at a cost that does not depend on the tokens before it; the returned state includes it."""
    query, key = positive(query), positive(key)
    products = state[0] + product("bthd,bthe->bhde", apply_rope(key), value.astype(jnp.float32))
    denominator = state[1] + key[:, 0]
    numerator = einsum("bthd,bhde->bthe", apply_rope(query), products)
    mixed = numerator / jnp.maximum(_dot(query, denominator[:, None]), MIN_DENOMINATOR)
    return mixed.astype(value.dtype), (products, denominator)


def _features(query: Heads, key: Keys, valid: Valid | None) -> tuple[Heads, Keys]:
    query, key = positive(query), positive(key)
    return query, key if valid is None else jnp.where(valid[:, :, None, None], key, 0)


def _rotated(
    apply_rope: Rope, features: Float[Array, "batch _ heads head_dim"], value: Values
) -> Float[Array, "batch _ heads head_dim"]:
    """Features in the dtype of the values: their products need no more precision."""
    return apply_rope(features).astype(value.dtype)


def _dot(a: Heads, b: Float[Array, "batch #tokens heads head_dim"]) -> Float[Array, "batch tokens heads 1"]:
    return jnp.sum(a * b, axis=-1, keepdims=True)
