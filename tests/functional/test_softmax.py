"""The masked softmax against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.softmax import masked_scores, masked_softmax, sees_a_key

SCORES = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
VALID = np.array([[True, False, True, True, True, True, False], [True] * 6 + [False]])


@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
@pytest.mark.parametrize(("causal", "first_row"), [(False, 0), (True, 0), (True, 2)])
def test_each_row_shares_out_1_among_the_keys_it_may_see(causal, first_row, valid):
    expected = np.zeros(SCORES.shape)
    for b, h, r in np.ndindex(SCORES.shape[:3]):
        seen = [k for k in range(6) if (not causal or k <= first_row + r) and (valid is None or valid[b, k])]
        exponentials = np.exp(SCORES[b, h, r, seen])
        expected[b, h, r, seen] = exponentials / exponentials.sum()
    mask = None if valid is None else jnp.asarray(valid)
    arguments = {"causal": causal, "valid": mask}
    scores = masked_scores(jnp.asarray(SCORES, jnp.float32), first_row=first_row, **arguments)
    np.testing.assert_allclose(jax.nn.softmax(scores), expected, rtol=1e-5, atol=1e-7)
    if first_row == 0:
        result = masked_softmax(jnp.asarray(SCORES, jnp.float32), **arguments)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)


def test_a_row_that_sees_nothing_gets_weights_of_0_and_no_gradient():
    valid = jnp.asarray([[False] * 6, [True] * 6])
    softmax = lambda scores: masked_softmax(scores, causal=False, valid=valid)  # noqa: E731
    weights, pull = jax.vjp(softmax, jnp.asarray(SCORES, jnp.float32))
    assert not np.asarray(weights[0]).any()
    np.testing.assert_allclose(weights[1].sum(-1), 1, rtol=1e-6)
    (gradient,) = pull(jnp.asarray(SCORES, jnp.float32))
    assert not np.asarray(gradient[0]).any() and np.asarray(gradient[1]).all()


@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("causal", [False, True])
def test_which_queries_see_a_key(causal, window):
    valid = np.random.default_rng(0).uniform(size=(20, 7)) < 0.3
    i, j = np.indices((7, 7))
    seen = valid[:, None] & ((j <= i) if causal else i >= 0) & ((np.abs(i - j) < window) if window else True)
    found = sees_a_key(jnp.asarray(valid), causal=causal, window=window)
    np.testing.assert_array_equal(np.broadcast_to(found, valid.shape), seen.any(-1))
