"""Maps whose figures are known, [batch, heads, tokens, tokens]."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis.attention_maps import effective_rank, entropy, head_diversity, mean_distance
from flaxformer_lab.functional.attention import mean_weights, softmax_weights

TOKENS = 8
UNIFORM = np.full((TOKENS, TOKENS), 1 / TOKENS, np.float32)
ITSELF = np.eye(TOKENS, dtype=np.float32)
NEXT = np.roll(ITSELF, 1, axis=1)  # the last one looks at the first
PAIRS = (ITSELF + NEXT) / 2


def maps(*heads, batch=2):
    return jnp.asarray(np.stack([np.stack(heads)] * batch))


def drawn(heads, batch=3):
    weights = np.random.default_rng(0).dirichlet(np.ones(TOKENS), size=(batch, heads, TOKENS))
    return jnp.asarray(weights, jnp.float32)


def test_entropy_is_1_for_equal_weights_and_0_for_one_token():
    found = entropy(maps(UNIFORM, ITSELF, PAIRS))
    np.testing.assert_allclose(found, [1, 0, np.log(2) / np.log(TOKENS)], atol=1e-6)
    assert np.all(np.isnan(entropy(jnp.ones((2, 3, 1, 1)))))  # nothing to choose from


@pytest.mark.parametrize("mask", [{"causal": True}, {"window": 3}, {"causal": True, "window": 2}])
def test_entropy_is_relative_to_what_a_query_may_see(mask):
    equal = jnp.broadcast_to(mean_weights(1, TOKENS, **mask), (2, 3, TOKENS, TOKENS))
    np.testing.assert_allclose(entropy(equal, **mask), 1, rtol=1e-6)
    assert np.all(entropy(equal) < 0.9)


def test_entropy_is_that_of_the_queries_that_are_asked():
    sharp = jnp.stack([jnp.full(4, 0.25), jnp.eye(4)[0], jnp.full(4, 0.25), jnp.eye(4)[1]])[None, None]
    asked = jnp.array([[0.0, 1.0, 0.5, 0.0]])
    np.testing.assert_allclose(entropy(sharp, asked=asked), [1 / 3], rtol=1e-6)


def test_entropy_of_weights_that_all_examples_share_is_that_of_each():
    shared, asked = drawn(2, batch=1), jnp.asarray(np.random.default_rng(1).uniform(size=(3, TOKENS)), jnp.float32)
    each = jnp.broadcast_to(shared, (3, *shared.shape[1:]))
    np.testing.assert_allclose(entropy(shared, asked=asked), entropy(each, asked=asked), rtol=1e-6)
    np.testing.assert_allclose(entropy(shared), entropy(each), rtol=1e-6)


def test_entropy_is_the_mean_over_examples_and_queries():
    weights = np.asarray(drawn(2), np.float64)
    expected = [
        np.mean([-sum(a * np.log(a) for a in row) for example in weights[:, head] for row in example]) / np.log(TOKENS)
        for head in range(2)
    ]
    np.testing.assert_allclose(entropy(drawn(2)), expected, rtol=1e-5)


def test_distance_is_counted_in_tokens():
    backwards = ITSELF[::-1]
    found = mean_distance(maps(ITSELF, NEXT, backwards, UNIFORM))
    apart = np.abs(np.subtract.outer(np.arange(TOKENS), np.arange(TOKENS)))
    np.testing.assert_allclose(found, [0, (TOKENS - 1 + TOKENS - 1) / TOKENS, TOKENS / 2, apart.mean()], rtol=1e-6)


def test_diversity_is_0_for_heads_alike_and_1_for_heads_apart():
    assert head_diversity(maps(UNIFORM, UNIFORM, UNIFORM)) == pytest.approx(0, abs=1e-6)
    assert head_diversity(maps(ITSELF, NEXT)) == pytest.approx(1)
    assert head_diversity(maps(ITSELF, PAIRS)) == pytest.approx(1 - np.sqrt(0.5), rel=1e-5)
    assert head_diversity(maps(ITSELF, ITSELF, NEXT)) == pytest.approx(2 / 3, rel=1e-5)  # two of three pairs apart
    assert head_diversity(maps(ITSELF)) == 0


def test_effective_rank_counts_the_heads_that_differ():
    assert effective_rank(maps(*[drawn(1)[0, 0]] * 12)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(maps(ITSELF, NEXT, np.roll(NEXT, 1, axis=1))) == pytest.approx(3, rel=1e-5)
    assert effective_rank(maps(ITSELF)) == pytest.approx(1)
    # Four heads, two of each kind: two singular values of sqrt(2).
    assert effective_rank(maps(ITSELF, NEXT, ITSELF, NEXT)) == pytest.approx(2, rel=1e-5)


def test_effective_rank_is_that_of_the_singular_values():
    flat = np.asarray(drawn(4), np.float64).reshape(3, 4, -1)
    values = np.linalg.svd(flat / np.linalg.norm(flat, axis=-1, keepdims=True), compute_uv=False)
    shares = values / values.sum(axis=-1, keepdims=True)
    expected = np.exp(-np.sum(shares * np.log(shares), axis=-1)).mean()
    assert effective_rank(drawn(4)) == pytest.approx(expected, rel=1e-4)


def entropy_of_normal_scores(tokens, head_dim, power):
    """The entropy of softmax attention to normal queries and keys, whose scores are scaled by head_dim^-power."""
    generator = np.random.default_rng(tokens + head_dim)
    query, key = (jnp.asarray(generator.normal(size=(8, tokens, 1, head_dim)), jnp.float32) for _ in range(2))
    return float(entropy(softmax_weights(query * head_dim ** (0.5 - power), key))[0])


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("head_dim", [4, 64, 512])
def test_entropy_of_wide_dot_products_follows_the_random_energy_model(head_dim, power):
    """Scores of variance s^2 = d^(1 - 2p) give entropy / log T = 1 - s^2 / (2 ln T) while that is large.

    So features in one dot product do not make attention uniform where scores are divided by sqrt(d), p = 1/2: then
    the entropy does not depend on d. Divided by d they do.
    """
    tokens = 256
    law = max(0.0, 1 - head_dim ** (1 - 2 * power) / (2 * np.log(tokens)))
    assert entropy_of_normal_scores(tokens, head_dim, power) == pytest.approx(law, abs=0.02)


@pytest.mark.parametrize(("head_dim", "low", "high"), [(16, 0.0, 0.45), (256, 0.0, 0.1)])
def test_unscaled_dot_products_freeze(head_dim, low, high):
    """Without a scale the law is at its end: few tokens take all the weight, the more features the fewer."""
    assert low < entropy_of_normal_scores(256, head_dim, 0.0) < high
