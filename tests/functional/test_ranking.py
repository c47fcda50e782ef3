"""Recall and NDCG of one list against a plain loop and scikit-learn."""

import functools

import jax
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from flaxformer_lab.functional.ranking import recall_and_ndcg

GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.normal(size=(6, 30)).astype(np.float32)
RELEVANT = GENERATOR.random((6, 30)) < np.array([0.05, 0.1, 0.2, 0.4, 0.7, 0.0])[:, None]
RELEVANT[0, 3] = True


@functools.partial(jax.jit, static_argnums=2)
def compiled(scores, relevant, top):
    return recall_and_ndcg(scores, relevant, top)


@pytest.mark.parametrize("top", [1, 5, 10])
def test_both_are_those_of_a_plain_loop_and_of_scikit_learn(top):
    recall, ndcg = jax.device_get(compiled(SCORES, RELEVANT, top))
    for row in range(5):
        best = sorted(range(30), key=lambda item: -SCORES[row, item])[:top]
        hits = sum(RELEVANT[row, item] for item in best)
        assert recall[row] == pytest.approx(hits / min(top, RELEVANT[row].sum()))
        assert ndcg[row] == pytest.approx(ndcg_score(RELEVANT[row : row + 1], SCORES[row : row + 1], k=top), abs=1e-6)
    assert recall[5] == ndcg[5] == 0  # nothing is relevant


def test_of_equal_scores_the_first_item_ranks_higher_and_a_nan_shows():
    relevant = np.eye(3, dtype=bool)[:2]
    recall, ndcg = compiled(np.zeros((2, 3), np.float32), relevant, 1)
    assert recall.tolist() == ndcg.tolist() == [1, 0]
    spoilt = np.array([[1, np.nan, 0], [0, 0, 0]], np.float32)
    assert np.isnan(np.asarray(compiled(spoilt, relevant, 1))[:, 0]).all()
