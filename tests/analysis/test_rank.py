import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis.measures import measure
from flaxformer_lab.analysis.rank import rank_residual, scale_heterogeneity, stable_rank

X = np.random.default_rng(0).normal(1, 1, size=(3, 5, 4)).astype(np.float32)

# P7 (Dong et al. 2021): attention alone at initialisation.
STREAM = {"name": "delay", "tokens": 32, "features": 64, "embedding": "identity", "head": "identity"}
ATTENTION = {
    "width": 64,
    "depth": 4,
    "attention.num_heads": 4,
    "ffn.kind": "off",
    "position": "off",
    "skip.attention": False,
}


def test_the_rank_residual_is_that_of_numpys_norms():
    def norm(x):
        return np.sqrt(np.linalg.norm(x, 1) * np.linalg.norm(x, np.inf))

    expected = [norm(x - x.mean(axis=0)) / norm(x) for x in X.astype(np.float64)]
    np.testing.assert_allclose(rank_residual(jnp.asarray(X)), expected, rtol=1e-5)


def test_the_stable_rank_is_that_of_numpys_norms():
    expected = [np.linalg.norm(x) ** 2 / np.linalg.norm(x, 2) ** 2 for x in X.astype(np.float64)]
    np.testing.assert_allclose(stable_rank(jnp.asarray(X)), expected, rtol=1e-5)


def test_tokens_alike_leave_no_residual_and_a_single_direction():
    alike = jnp.asarray(np.repeat(X[:, :1], 5, axis=1))
    np.testing.assert_allclose(rank_residual(alike), 0, atol=1e-6)
    np.testing.assert_allclose(stable_rank(alike), 1, rtol=1e-5)
    apart = jnp.eye(4)[None]
    np.testing.assert_allclose(stable_rank(apart), 4, rtol=1e-6)
    np.testing.assert_array_equal([rank_residual(0 * apart)[0], stable_rank(0 * apart)[0]], 0)


def test_without_skip_connections_tokens_collapse_doubly_exponentially(subject):
    found = measure(subject(ATTENTION, task=STREAM, fresh=True), ["depth"])["rank_residual"]
    # The first layer makes the common part that the others leave alone: independent tokens have none.
    lost = -np.log(found[2:])
    assert 1 < lost[0] < 2
    np.testing.assert_array_less(2.5, lost[1:] / lost[:-1])
    np.testing.assert_array_less(lost[1:] / lost[:-1], 4)


def test_with_skip_connections_they_do_not(subject):
    found = measure(subject(ATTENTION | {"skip.attention": True}, task=STREAM, fresh=True), ["depth"])["rank_residual"]
    assert np.all(found[1:] > 0.6 * found[0])


def test_scale_heterogeneity_is_the_span_of_the_standard_deviations():
    scales = np.array([0.1, 1, 10, 1000], np.float32)
    even = (X - X.mean(axis=(0, 1))) / X.std(axis=(0, 1))
    assert scale_heterogeneity(jnp.asarray(even)) == pytest.approx(0, abs=1e-6)
    assert scale_heterogeneity(jnp.asarray(even * scales + 3)) == pytest.approx(4, abs=1e-4)
    assert scale_heterogeneity(jnp.asarray(even * np.float32([0, 1, 1, 1]))) == float("inf")
