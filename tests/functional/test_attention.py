"""Attention against naive loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import attention
from flaxformer_lab.functional.softmax_attention import softmax_attention

BATCH, TOKENS, HEADS, HEAD_DIM = 2, 4, 2, 4
GENERATOR = np.random.default_rng(0)
QUERY, KEY, VALUE = (GENERATOR.normal(size=(BATCH, TOKENS, HEADS, HEAD_DIM)) for _ in range(3))
SCORES = GENERATOR.normal(size=(HEADS, TOKENS + 2, TOKENS + 2))
# The second example's last two tokens are padding.
PADDED = np.array([[True] * 4, [True] * 2 + [False] * 2])

masks = pytest.mark.parametrize("valid", [None, PADDED], ids=["whole", "padded"])
causality = pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])


def arrays(*values):
    return [None if value is None else jnp.asarray(value, jnp.float32) for value in values]


def options(causal, valid):
    return {"causal": causal, "valid": None if valid is None else jnp.asarray(valid)}


def weigh(score, causal, valid):
    """Weights [batch, heads, query, key] by loops: a softmax of score(b, h, i, j) over the tokens that may be seen."""
    weights = np.zeros((BATCH, HEADS, TOKENS, TOKENS))
    for b, h, i in np.ndindex(BATCH, HEADS, TOKENS):
        seen = [j for j in range(TOKENS) if (not causal or j <= i) and (valid is None or valid[b, j])]
        exponentials = {j: np.exp(score(b, h, i, j)) for j in seen}
        for j in seen:
            weights[b, h, i, j] = exponentials[j] / sum(exponentials.values())
    return weights


def mix(weights, value):
    result = np.zeros(value.shape)
    for b, i, h in np.ndindex(BATCH, TOKENS, HEADS):
        for j in range(TOKENS):
            result[b, i, h] += weights[b, h, i, j] * value[b, j, h]
    return result


def scaled_dot_product(b, h, i, j):
    return sum(QUERY[b, i, h, c] * KEY[b, j, h, c] for c in range(HEAD_DIM)) / np.sqrt(HEAD_DIM)


@causality
@masks
@pytest.mark.parametrize("value_dim", [HEAD_DIM, HEAD_DIM - 1])
def test_softmax_attention(causal, valid, value_dim):
    value = VALUE[..., :value_dim]
    run = jax.jit(lambda *heads: softmax_attention(*heads, **options(causal, valid)))
    result = run(*arrays(QUERY, KEY, value))
    expected = mix(weigh(scaled_dot_product, causal, valid), value)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@causality
@masks
def test_softmax_weights(causal, valid):
    run = jax.jit(lambda *heads: attention.softmax_weights(*heads, **options(causal, valid)))
    result = run(*arrays(QUERY, KEY))
    np.testing.assert_allclose(result, weigh(scaled_dot_product, causal, valid), rtol=1e-5, atol=1e-6)


@causality
@masks
def test_static_weights_and_their_application(causal, valid):

    @jax.jit
    def run(scores, value):
        weights = attention.static_weights(scores, TOKENS, **options(causal, valid))
        return weights, attention.apply_weights(weights, value)

    weights, result = run(*arrays(SCORES, VALUE))
    assert weights.shape[0] == (1 if valid is None else BATCH)
    expected = weigh(lambda b, h, i, j: SCORES[h, i, j], causal, valid)
    np.testing.assert_allclose(np.broadcast_to(weights, expected.shape), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result, mix(expected, VALUE), rtol=1e-5, atol=1e-6)


@causality
@masks
def test_mean_attention_and_its_weights(causal, valid):
    @jax.jit
    def run(value):
        narrow = options(causal, valid)
        return attention.mean_weights(BATCH, TOKENS, **narrow), attention.mean_attention(value, **narrow)

    expected = weigh(lambda b, h, i, j: 0.0, causal, valid)
    weights, result = run(*arrays(VALUE))
    np.testing.assert_allclose(np.broadcast_to(weights, expected.shape), expected, rtol=1e-6)
    np.testing.assert_allclose(result, mix(expected, VALUE), rtol=1e-5, atol=1e-6)


@masks
def test_channel_attention_and_its_weights(valid):
    temperature = np.array([0.5, 3.0])
    weights, expected = np.zeros((BATCH, HEADS, HEAD_DIM, HEAD_DIM)), np.zeros(VALUE.shape)
    for b, h in np.ndindex(BATCH, HEADS):
        seen = [t for t in range(TOKENS) if valid is None or valid[b, t]]
        for e in range(HEAD_DIM):
            q = QUERY[b, seen, h, e] / np.linalg.norm(QUERY[b, seen, h, e])
            scores = [KEY[b, seen, h, d] / np.linalg.norm(KEY[b, seen, h, d]) @ q for d in range(HEAD_DIM)]
            weights[b, h, e] = np.exp(temperature[h] * np.array(scores))
            weights[b, h, e] /= weights[b, h, e].sum()
            for t in range(TOKENS):
                expected[b, t, h, e] = weights[b, h, e] @ VALUE[b, t, h]
    mask = None if valid is None else jnp.asarray(valid)

    @jax.jit
    def run(query, key, value, temperature):
        of_weights = attention.channel_weights(query, key, temperature, valid=mask)
        return of_weights, attention.channel_attention(query, key, value, temperature, valid=mask)

    of_weights, result = run(*arrays(QUERY, KEY, VALUE, temperature))
    np.testing.assert_allclose(of_weights, weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@causality
@masks
@pytest.mark.parametrize("kind", ["softmax", "mean", "static"])
def test_gradients_flow_from_the_tokens_that_may_be_seen_and_from_no_others(kind, causal, valid):
    query, key, value = arrays(QUERY, KEY, VALUE)

    def output(key, value):
        if kind == "softmax":
            return softmax_attention(query, key, value, **options(causal, valid))
        if kind == "mean":
            return attention.mean_attention(value, **options(causal, valid))
        weights = attention.static_weights(*arrays(SCORES), TOKENS, **options(causal, valid))
        return attention.apply_weights(weights, value)

    @jax.jit
    def pulled(of_tokens):
        return jax.vmap(jax.vjp(output, key, value)[1])(of_tokens)

    of_tokens = VALUE * np.eye(TOKENS)[:, None, :, None, None]  # [token, *VALUE.shape]
    dks, dvs = (np.abs(gradients).max(axis=(3, 4)) for gradients in pulled(*arrays(of_tokens)))
    for i, dk, dv in zip(range(TOKENS), dks, dvs, strict=True):
        seen = np.ones((BATCH, TOKENS), bool) if valid is None else valid.copy()
        seen &= np.arange(TOKENS) <= i if causal else True
        assert np.array_equal(dv != 0, seen)
        if kind == "softmax":
            # A single visible token has weight 1 whatever its key says.
            choice = seen & (seen.sum(axis=1, keepdims=True) > 1)
            assert np.array_equal(dk > 1e-6, choice)
            assert not dk[~seen].any()


def test_a_single_token_receives_itself():
    query, key, value = arrays(QUERY[:, :1], KEY[:, :1], VALUE[:, :1])
    np.testing.assert_allclose(softmax_attention(query, key, value), value, rtol=1e-6)
    np.testing.assert_allclose(attention.mean_attention(value), value, rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, 1e18])
def test_huge_scores_stay_finite(size):
    weights = attention.softmax_weights(*arrays(QUERY * size, KEY))
    assert np.all(np.isfinite(weights))
    np.testing.assert_allclose(np.asarray(weights).max(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "mix",
    [
        lambda *heads, valid: softmax_attention(*heads, valid=valid),
        lambda *heads, valid: attention.softmax_weights(*heads[:2], valid=valid),
        lambda *heads, valid: attention.mean_attention(heads[2], valid=valid),
        lambda *heads, valid: attention.apply_weights(
            jnp.repeat(attention.mean_weights(2, TOKENS, valid=valid), HEADS, axis=1), heads[2]
        ),
        lambda *heads, valid: attention.apply_weights(
            attention.static_weights(*arrays(SCORES), TOKENS, valid=valid), heads[2]
        ),
        lambda *heads, valid: attention.channel_weights(*heads[:2], jnp.ones(HEADS), valid=valid),
        lambda *heads, valid: attention.channel_attention(*heads, jnp.ones(HEADS), valid=valid),
    ],
    ids=["softmax", "softmax weights", "mean", "mean weights", "static", "channel weights", "channel"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_an_example_of_nothing_but_padding_becomes_0_and_gives_no_gradient(dtype, mix):
    valid = jnp.array([[True] * TOKENS, [False] * TOKENS])
    heads = [jnp.asarray(x, dtype) for x in (QUERY, KEY, VALUE)]
    output, pull = jax.vjp(lambda *heads: mix(*heads, valid=valid), *heads)
    gradients = pull(jnp.asarray(np.random.default_rng(1).normal(size=output.shape), output.dtype))
    assert np.asarray(output[0]).any() and not np.asarray(output[1]).any()
    assert any(np.asarray(gradient[0]).any() for gradient in gradients)
    assert not any(np.asarray(gradient[1]).any() for gradient in gradients)


def test_half_precision_weights_are_computed_in_float32():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in (QUERY, KEY, VALUE))
    assert attention.softmax_weights(query, key).dtype == jnp.float32
    assert attention.channel_weights(query, key, jnp.ones(HEADS)).dtype == jnp.float32
    exact = mix(weigh(scaled_dot_product, False, None), VALUE)
    result = softmax_attention(query, key, value)
    assert result.dtype == attention.mean_attention(value).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float32), exact, atol=3e-2)


@causality
@masks
@pytest.mark.parametrize("window", [1, 2, 9])
def test_a_window_narrows_what_static_and_mean_weights_see(causal, valid, window):
    """In a sequence of several windows, against the same loops with far tokens left out."""

    def near(score):
        return lambda b, h, i, j: score(b, h, i, j) if abs(i - j) < window else -np.inf

    with np.errstate(invalid="ignore"):  # a row that sees nothing
        static = np.nan_to_num(weigh(near(lambda b, h, i, j: SCORES[h, i, j]), causal, valid))
        mean = np.nan_to_num(weigh(near(lambda b, h, i, j: 0.0), causal, valid))

    @jax.jit
    def run(scores, value):
        narrow = options(causal, valid) | {"window": window}
        of_static = attention.static_weights(scores, TOKENS, **narrow)
        return of_static, attention.mean_weights(BATCH, TOKENS, **narrow), attention.mean_attention(value, **narrow)

    of_static, of_mean, result = run(*arrays(SCORES, VALUE))
    np.testing.assert_allclose(np.broadcast_to(of_static, static.shape), static, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.broadcast_to(of_mean, mean.shape), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result, mix(mean, VALUE), rtol=1e-5, atol=1e-6)
