"""ProbSparse attention against naive loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import probsparse
from flaxformer_lab.functional.softmax_attention import softmax_attention

BATCH, QUERIES, HEADS, HEAD_DIM = 2, 7, 2, 3
GENERATOR = np.random.default_rng(0)
QUERY, KEY, VALUE = (GENERATOR.normal(size=(BATCH, QUERIES, HEADS, HEAD_DIM)) for _ in range(3))
SAMPLED = GENERATOR.integers(QUERIES, size=(QUERIES, 2))
PADDED = np.arange(QUERIES)[None] < np.array([[7], [5]])


def naive(query, key, value, sampled, chosen_count, causal=False, valid=None, query_valid=None):
    """Loops over examples, heads and queries, as the paper says it."""
    batch, queries, heads, head_dim = query.shape
    keys = key.shape[1]
    out = np.zeros((batch, queries, heads, value.shape[-1]))
    for b, h in np.ndindex(batch, heads):
        seen = [j for j in range(keys) if valid is None or valid[b, j]]
        measure = np.full(queries, -np.inf)
        for i in range(queries):
            products = [query[b, i, h] @ key[b, j, h] for j in sampled[i] if j in seen]
            if products and (query_valid is None or query_valid[b, i]):
                measure[i] = max(products) - sum(products) / len(seen)
        chosen = np.argsort(-measure, kind="stable")[:chosen_count]
        for i in range(queries):
            visible = [j for j in seen if not causal or j <= i]
            if i in chosen:
                weights = np.exp([query[b, i, h] @ key[b, j, h] / np.sqrt(head_dim) for j in visible])
                weights = weights / weights.sum()
            else:
                weights = np.full(len(visible), 1.0 if causal else 1 / len(seen))
            for weight, j in zip(weights, visible, strict=True):
                out[b, i, h] += weight * value[b, j, h]
    return out


def arrays(*values):
    return [None if value is None else jnp.asarray(value) for value in values]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("valid", [None, PADDED], ids=["whole", "padded"])
def test_it_equals_the_loops(causal, valid):
    options = {"factor": 1.0, "causal": causal, "valid": arrays(valid)[0], "query_valid": arrays(valid)[0]}
    heads = [jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE)]
    sampled = jnp.asarray(SAMPLED)

    @jax.jit
    def run(query, key, value):
        weights = probsparse.probsparse_weights(query, key, sampled, **options)
        return probsparse.probsparse_attention(query, key, value, sampled, **options), weights

    expected = naive(QUERY, KEY, VALUE, SAMPLED, 2, causal, valid, valid)
    seen = np.ones((BATCH, QUERIES, 1, 1)) if valid is None else valid[:, :, None, None]
    result, weights = jax.device_get(run(*heads))
    np.testing.assert_allclose(result * seen, expected * seen, atol=1e-5)
    np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", weights, VALUE) * seen, expected * seen, atol=1e-5)


def test_queries_meet_another_sequence():
    key, value, sampled = KEY[:, :4], VALUE[:, :4], SAMPLED % 4
    heads = [jnp.asarray(x, jnp.float32) for x in (QUERY, key, value)]
    result = jax.jit(lambda *x: probsparse.probsparse_attention(*x, jnp.asarray(sampled), factor=1.0))(*heads)
    np.testing.assert_allclose(result, naive(QUERY, key, value, sampled, 2), atol=1e-5)


def test_where_every_query_attends_it_is_softmax_attention_and_so_are_its_gradients():
    heads = [jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE)]
    sampled = probsparse.sample_keys(jax.random.key(0), QUERIES, QUERIES, 9.0)
    assert sampled.shape == (QUERIES, QUERIES)

    def gradients(attend):
        return jax.jit(jax.grad(lambda *heads: jnp.sum(jnp.sin(attend(*heads))), argnums=(0, 1, 2)))(*heads)

    ours = gradients(lambda *heads: probsparse.probsparse_attention(*heads, sampled, factor=9.0, causal=True))
    theirs = gradients(lambda *heads: softmax_attention(*heads, causal=True))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_samples_are_drawn_from_the_key():
    draws = [probsparse.sample_keys(jax.random.key(seed), 96, 48, 5.0) for seed in (0, 0, 1)]
    assert draws[0].shape == (96, 20)  # 5 ceil(ln 48)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (np.asarray(draws[0]) != draws[2]).any() and np.asarray(draws[0]).max() == 47


@pytest.mark.parametrize(
    ("factor", "tokens", "count"), [(5.0, 96, 25), (3.0, 7, 6), (3.0, 8, 8), (1.0, 1, 1), (0.1, 9, 1)]
)
def test_how_many_are_sampled(factor, tokens, count):
    assert probsparse.num_sampled(factor, tokens) == count
