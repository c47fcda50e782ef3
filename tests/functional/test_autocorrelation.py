"""Auto-Correlation against naive loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import autocorrelation

GENERATOR = np.random.default_rng(0)


def heads(tokens, batch=3):
    return [GENERATOR.normal(size=(batch, tokens, 2, 3)) for _ in range(3)]


def naive(query, key, value, count, shared):
    batch, tokens = query.shape[:2]
    score = np.zeros((batch, tokens))
    for b, d, t in np.ndindex(batch, tokens, tokens):
        score[b, d] += np.mean(query[b, (t + d) % tokens] * key[b, t])
    out = np.zeros(value.shape)
    for b in range(batch):
        delays = np.argsort(-(score.mean(axis=0) if shared else score[b]))[:count]
        weights = np.exp(score[b, delays])
        for weight, delay in zip(weights / weights.sum(), delays, strict=True):
            out[b] += weight * np.roll(value[b], -delay, axis=0)
    return out


@pytest.mark.parametrize("shared", [False, True], ids=["own delays", "delays of the batch"])
@pytest.mark.parametrize("tokens", [7, 8])
def test_it_equals_the_loops(tokens, shared):
    query, key, value = heads(tokens)
    run = jax.jit(lambda *x: autocorrelation.autocorrelation_attention(*x, factor=2.0, shared=shared))
    result = run(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)))
    count = int(2 * np.log(tokens))
    np.testing.assert_allclose(result, naive(query, key, value, count, shared), atol=1e-5)
    assert np.abs(naive(query, key, value, count, not shared) - result).max() > 0.1


def test_a_gradient_goes_through_the_weights_of_the_delays_to_queries_and_keys():
    inputs = [x.astype(np.float32) for x in heads(6, batch=1)]

    @jax.jit
    def total(*inputs):
        return jnp.sum(jnp.sin(autocorrelation.autocorrelation_attention(*inputs, factor=2.0)))

    gradient = jax.device_get(jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs))
    step, direction = 1e-2, [GENERATOR.normal(size=x.shape).astype(np.float32) for x in inputs]
    ahead, back = (total(*(x + s * d for x, d in zip(inputs, direction, strict=True))) for s in (step, -step))
    expected = sum(float(np.sum(g * d)) for g, d in zip(gradient, direction, strict=True))
    np.testing.assert_allclose((ahead - back) / (2 * step), expected, rtol=1e-2)


def test_keys_become_as_many_as_queries():
    x = jnp.asarray(GENERATOR.normal(size=(1, 4, 1, 1)))
    np.testing.assert_array_equal(autocorrelation.fit_length(x, 3), x[:, :3])
    longer = autocorrelation.fit_length(x, 6)
    np.testing.assert_array_equal(longer[:, :4], x)
    np.testing.assert_array_equal(longer[:, 4:], 0)


@pytest.mark.parametrize(("factor", "tokens", "count"), [(3.0, 96, 13), (1.0, 96, 4), (1.0, 1, 1), (9.0, 4, 4)])
def test_how_many_delays(factor, tokens, count):
    assert autocorrelation.num_delays(factor, tokens) == count
