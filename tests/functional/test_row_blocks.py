"""Attention by blocks of rows, and its written-out gradient, against autodiff of the plain formula in float64.

Sequences are long enough for several blocks, of which the last is shorter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.row_blocks import _blocks, row_blocked_attention

TOKENS = 40
GENERATOR = np.random.default_rng(0)
QUERY, KEY = (GENERATOR.normal(size=(2, TOKENS, 2, 4)) for _ in range(2))
VALUE, TOWARDS = (GENERATOR.normal(size=(2, TOKENS, 2, 3)) for _ in range(2))
PADDED = np.arange(TOKENS)[None, :] < np.array([[TOKENS], [35]])

masks = pytest.mark.parametrize("valid", [None, PADDED], ids=["whole", "padded"])
causality = pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])


def plain(query, key, value, valid, causal, numpy=jnp):
    """softmax(Q K^T / sqrt(head_dim)) V, all at once."""
    scores = numpy.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    allowed = np.ones((1, 1, TOKENS, TOKENS), bool) if valid is None else np.asarray(valid)[:, None, None, :]
    allowed = allowed & (np.tril(np.ones((TOKENS, TOKENS), bool)) if causal else True)
    weights = numpy.exp(scores) * allowed
    return numpy.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


@causality
@masks
def test_values_and_gradients_are_those_of_the_plain_formula(causal, valid):
    def all_of_it(attend, dtype):
        arrays = [jnp.asarray(array, dtype) for array in (QUERY, KEY, VALUE, TOWARDS)]

        @jax.jit
        def run(query, key, value, towards):
            output, pull = jax.vjp(attend, query, key, value)
            return output, *pull(towards)

        return run(*arrays)

    mask = None if valid is None else jnp.asarray(valid)
    with jax.enable_x64(True):
        expected = [np.asarray(x) for x in all_of_it(lambda q, k, v: plain(q, k, v, valid, causal), jnp.float64)]
    result = all_of_it(lambda q, k, v: row_blocked_attention(q, k, v, mask, causal), jnp.float32)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@causality
def test_rows_that_see_nothing_are_0_and_have_no_gradient(causal):
    arrays = [jnp.asarray(array, jnp.float32) for array in (QUERY, KEY, VALUE)]
    valid = jnp.asarray([[False] * TOKENS, [True] * TOKENS])
    output, pull = jax.vjp(lambda *arrays: row_blocked_attention(*arrays, valid, causal), *arrays)
    for array in (output, *pull(jnp.ones_like(output))):
        assert not np.asarray(array[0]).any() and np.asarray(array[1]).any()


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 70, 128, 130, 1000, 5000])
def test_blocks_cover_every_row_once_and_see_every_key_that_a_row_may(tokens):
    blocks = list(_blocks(tokens, tokens, causal=True))
    assert np.concatenate([np.arange(tokens)[rows] for rows, _ in blocks]).tolist() == list(range(tokens))
    assert all(seen == slice(0, rows.stop) for rows, seen in blocks)
    assert len(blocks) >= (4 if tokens >= 128 else 1)
    assert list(_blocks(tokens, tokens, causal=False)) == [(slice(0, tokens), slice(0, tokens))]


def test_half_precision_keeps_its_dtype_and_comes_close():
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in (QUERY, KEY, VALUE)]
    result = jax.jit(lambda *heads: row_blocked_attention(*heads, None, True))(*arrays)
    assert result.dtype == jnp.bfloat16
    expected = plain(QUERY, KEY, VALUE, None, True, np)
    np.testing.assert_allclose(np.asarray(result, np.float32), expected, atol=4e-2)
