"""The masked softmax against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.softmax import masked_scores, masked_softmax

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


def test_a_row_that_sees_nothing_gets_equal_weights():
    result = masked_softmax(jnp.asarray(SCORES, jnp.float32), causal=False, valid=jnp.zeros((2, 6), bool))
    np.testing.assert_allclose(result, np.full(SCORES.shape, 1 / 6), rtol=1e-6)
