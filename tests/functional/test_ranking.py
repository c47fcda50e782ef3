"""Recall and NDCG of one list against a plain loop and scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from flaxformer_lab.functional.ranking import recall_and_ndcg

GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.normal(size=(6, 30)).astype(np.float32)
RELEVANT = GENERATOR.random((6, 30)) < np.array([0.05, 0.1, 0.2, 0.4, 0.7, 0.0])[:, None]
RELEVANT[0, 3] = True


@pytest.mark.parametrize("top", [1, 5, 10])
def test_both_are_those_of_a_plain_loop_and_of_scikit_learn(top):
    recall, ndcg = recall_and_ndcg(jnp.asarray(SCORES), jnp.asarray(RELEVANT), top)
    for row in range(5):
        best = sorted(range(30), key=lambda item: -SCORES[row, item])[:top]
        hits = sum(RELEVANT[row, item] for item in best)
        assert recall[row] == pytest.approx(hits / min(top, RELEVANT[row].sum()))
        assert ndcg[row] == pytest.approx(ndcg_score(RELEVANT[row : row + 1], SCORES[row : row + 1], k=top), abs=1e-6)
    assert recall[5] == ndcg[5] == 0  # nothing is relevant


def test_of_equal_scores_the_first_item_ranks_higher_and_a_nan_shows():
    relevant = jnp.eye(3, dtype=bool)[:2]
    recall, ndcg = recall_and_ndcg(jnp.zeros((2, 3)), relevant, 1)
    assert recall.tolist() == ndcg.tolist() == [1, 0]
    assert np.isnan(recall_and_ndcg(jnp.array([[1, jnp.nan, 0]]), relevant[:1], 1)).all()
