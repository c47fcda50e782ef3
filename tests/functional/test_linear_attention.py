"""Linear attention against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import linear_attention as formulas
from flaxformer_lab.functional.choice import Choice
from flaxformer_lab.functional.position import rotary

BATCH, TOKENS, HEADS, HEAD_DIM, VALUE_DIM = 2, 7, 2, 4, 3
GENERATOR = np.random.default_rng(0)
QUERY, KEY = (GENERATOR.normal(size=(BATCH, TOKENS, HEADS, HEAD_DIM)) for _ in range(2))
VALUE, TOWARDS = (GENERATOR.normal(size=(BATCH, TOKENS, HEADS, VALUE_DIM)) for _ in range(2))
VALID = np.arange(TOKENS)[None] < np.array([[TOKENS], [4]])


def arrays(*values, dtype=jnp.float32):
    return [jnp.asarray(value, dtype) for value in values]


def phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def turned(x, t):
    """The pair (i, i + 2) of four features turned by t / 10^4^(i/2)."""
    number = (x[:2] + 1j * x[2:]) * np.exp(1j * t / 10000 ** (np.arange(2) / 2))
    return np.concatenate([number.real, number.imag])


def weigh(causal, valid, rotate):
    weights = np.zeros((BATCH, HEADS, TOKENS, TOKENS))
    for b, h, t in np.ndindex(BATCH, HEADS, TOKENS):
        seen = [s for s in range(t + 1 if causal else TOKENS) if valid is None or valid[b, s]]
        total = sum(phi(QUERY[b, t, h]) @ phi(KEY[b, s, h]) for s in seen)
        for s in seen:
            query, key = phi(QUERY[b, t, h]), phi(KEY[b, s, h])
            query, key = (turned(query, t), turned(key, s)) if rotate else (query, key)
            weights[b, h, t, s] = query @ key / total
    return weights


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
@pytest.mark.parametrize("rotate", [False, True], ids=["plain", "rotary"])
def test_values_and_weights(causal, valid, rotate):
    options = {"causal": causal, "valid": None if valid is None else jnp.asarray(valid)}
    options |= {"apply_rope": rotary} if rotate else {}
    expected = weigh(causal, valid, rotate)

    @jax.jit
    def run(query, key, value):
        weights = formulas.linear_weights(query, key, **options)
        return weights, formulas.linear_attention(query, key, value, **options)

    weights, result = run(*arrays(QUERY, KEY, VALUE))
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result, np.einsum("bhts,bshd->bthd", expected, VALUE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_the_formula_in_float64(causal):
    def plain(query, key, value):
        query, key = (jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0))) for x in (query, key))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (np.tri(TOKENS) if causal else np.ones((1, 1)))[None, None]
        return jnp.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), value)

    def gradients(attend, dtype):
        run = jax.jit(lambda *heads: jax.vjp(attend, *heads[:3])[1](heads[3]))
        return run(*arrays(QUERY, KEY, VALUE, TOWARDS, dtype=dtype))

    with jax.enable_x64(True):
        expected = [np.asarray(x) for x in gradients(plain, jnp.float64)]
    ours = gradients(lambda *heads: formulas.linear_attention(*heads, causal=causal), jnp.float32)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("rotate", [False, True], ids=["plain", "rotary"])
def test_one_token_after_another_gives_the_causal_form(rotate):
    """From memories of unequal lengths, each example continued at its own place."""
    lengths = np.array([5, 2])
    whole = np.einsum("bhts,bshd->bthd", weigh(True, None, rotate), VALUE)
    apply_rope = rotary if rotate else formulas.identity
    memory = formulas.init_state(*arrays(KEY, VALUE), jnp.asarray(lengths), apply_rope=apply_rope)
    for number in range(2):
        place = lengths + number
        token = [x[np.arange(2), place][:, None] for x in (QUERY, KEY, VALUE)]
        apply_rope = formulas.identity
        if rotate:
            apply_rope = lambda x, place=place: jnp.asarray(  # noqa: E731
                [[[turned(np.asarray(x[b, 0, h]), place[b]) for h in range(HEADS)]] for b in range(2)], jnp.float32
            )
        result, memory = formulas.decode_step(*arrays(*token), memory, apply_rope=apply_rope)
        np.testing.assert_allclose(result[:, 0], whole[np.arange(2), place], rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_its_type_and_comes_within_a_hundredth():
    half = arrays(QUERY, KEY, VALUE, dtype=jnp.bfloat16)
    result = formulas.linear_attention(*half, causal=True)
    assert result.dtype == jnp.bfloat16
    expected = np.einsum("bhts,bshd->bthd", weigh(True, None, False), VALUE)
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_on_the_kernel_of_lightning_attention(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(formulas.lightning, "choose", lambda *arguments: Choice("interpreted kernel", "for this test"))
    result = jax.jit(lambda *heads: formulas.linear_attention(*heads, causal=True))(
        *arrays(QUERY, KEY, VALUE, dtype=dtype)
    )
    assert result.dtype == dtype
    expected = np.einsum("bhts,bshd->bthd", weigh(True, None, False), VALUE)
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, atol=tolerance * np.abs(expected).max())


def test_the_implementation_may_be_asked_for(monkeypatch):
    monkeypatch.setattr(formulas.lightning, "choose", lambda *arguments: Choice("interpreted kernel", "for this test"))
    program = lambda **options: str(  # noqa: E731
        jax.make_jaxpr(lambda *heads: formulas.linear_attention(*heads, causal=True, **options))(
            *arrays(QUERY, KEY, VALUE)
        )
    )
    assert "pallas_call" in program() and "pallas_call" not in program(implementation="blockwise")
    with pytest.raises(ValueError, match="implementation=cuda is not one of blockwise, kernel"):
        program(implementation="cuda")


def test_padding_alone_and_features_that_vanish_stay_finite():
    nothing = jnp.zeros((BATCH, TOKENS), bool)
    assert np.all(np.isfinite(formulas.linear_attention(*arrays(QUERY, KEY, VALUE), valid=nothing)))
    far = arrays(QUERY - 1e3, KEY - 1e3, VALUE)
    run = lambda *heads: formulas.linear_attention(*heads, causal=True).sum()  # noqa: E731
    assert all(np.all(np.isfinite(x)) for x in jax.jit(jax.grad(run, argnums=(0, 1, 2)))(*far))


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        formulas.linear_attention(*arrays(QUERY[:, :0], KEY[:, :0], VALUE[:, :0]))


@pytest.mark.parametrize(("queries", "keys"), [(3, 7), (7, 3)])
def test_keys_may_be_of_another_sequence(queries, keys):
    query, key, value = QUERY[:, :queries], KEY[:, :keys], VALUE[:, :keys]
    valid = np.arange(keys)[None] < np.array([[keys], [2]])
    scores = np.einsum("bqhd,bkhd->bhqk", phi(query), phi(key)) * valid[:, None, None]
    weights = scores / scores.sum(-1, keepdims=True)
    inputs = {"causal": False, "valid": jnp.asarray(valid)}
    output = formulas.linear_attention(*arrays(query, key, value), **inputs)
    np.testing.assert_allclose(output, np.einsum("bhqk,bkhd->bqhd", weights, value), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(formulas.linear_weights(*arrays(query, key), **inputs), weights, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="are not one sequence, so causal=True cannot"):
        formulas.linear_attention(*arrays(query, key, value), causal=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_features_are_elu_plus_1_with_a_gradient_everywhere(dtype):
    x = jnp.asarray([-80, -40, -17, -16.5, -1, -1e-3, 0, 1e-3, 1, 100, 60000], dtype)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(formulas.positive(x), phi(exact), rtol=1e-6)
    gradient = jax.vmap(jax.grad(formulas.positive))(x.astype(jnp.float32))
    np.testing.assert_allclose(gradient, np.where(exact > 0, 1, np.exp(np.minimum(exact, 0))), rtol=1e-6)


def values_and_gradients(attend):
    """One program for the outputs and what comes back for query, key and value."""

    @jax.jit
    def run(heads, towards):
        output, pull = jax.vjp(attend, *heads)
        return output, *pull(towards)

    return run


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_weights_of_small_features_are_in_proportion(dtype, causal):
    """At -17 a feature is 4e-8, the smallest number of float16, and a product of two is 2e-15."""
    half = arrays(QUERY / 4 - 17, KEY / 4 - 17, VALUE, dtype=dtype)
    query, key, value = (np.asarray(x, np.float64) for x in half)
    seen = np.tri(TOKENS) if causal else np.ones((TOKENS, TOKENS))
    weights = np.einsum("bthd,bshd->bhts", phi(query), phi(key)) * seen
    expected = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), value)
    attend = lambda *heads: formulas.linear_attention(*heads, causal=causal)  # noqa: E731
    output, _, _, dv = values_and_gradients(attend)(half, jnp.asarray(TOWARDS, dtype))
    error = 1e-4 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(output, np.float64), expected, atol=error * np.abs(expected).max())
    of_values = np.einsum("bhts,bthd->bshd", weights / weights.sum(-1, keepdims=True), TOWARDS)
    np.testing.assert_allclose(np.asarray(dv, np.float64), of_values, atol=error * np.abs(of_values).max())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_query_that_sees_no_key_becomes_0_and_gives_no_gradient(dtype, causal):
    valid = np.stack([np.arange(TOKENS) >= 3, np.zeros(TOKENS, bool)])
    attend = lambda *heads: formulas.linear_attention(*heads, causal=causal, valid=jnp.asarray(valid))  # noqa: E731
    heads = arrays(QUERY, KEY, VALUE, dtype=dtype)
    output, dq, dk, dv = map(np.asarray, values_and_gradients(attend)(heads, jnp.asarray(TOWARDS, dtype)))
    seen = np.repeat(valid[:, None], TOKENS, axis=1) & (np.tri(TOKENS, dtype=bool) if causal else True)
    blind, unseen = ~seen.any(2), ~seen.any(1)
    assert blind[0, :3].all() == causal and blind[1].all() and output[~blind].all()
    assert not output[blind].any() and not dq[blind].any()
    assert not dk[unseen].any() and not dv[unseen].any() and dv[~unseen].all()
