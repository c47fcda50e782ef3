"""Dropout is decided by each example's key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.dropout import dropout, fold_in

KEYS = jax.random.split(jax.random.key(0), 4)
X = jnp.asarray(np.random.default_rng(0).uniform(1, 2, size=(4, 50, 20)), jnp.float32)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_values_are_dropped_at_the_rate_and_the_rest_is_scaled_up(rate):
    y = np.asarray(dropout(X, KEYS, rate))
    kept = y != 0
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation
    np.testing.assert_allclose(y[kept], np.asarray(X)[kept] / (1 - rate), rtol=1e-6)


def test_rate_zero_changes_nothing():
    np.testing.assert_array_equal(dropout(X, KEYS, 0.0), X)


def test_each_example_has_draws_of_its_own():
    kept = np.asarray(dropout(X, KEYS, 0.5)) != 0
    assert all(np.any(kept[a] != kept[b]) for a in range(4) for b in range(a))


def test_how_the_batch_is_split_does_not_matter():
    halves = [dropout(X[rows], KEYS[rows], 0.5) for rows in (slice(0, 1), slice(1, 4))]
    np.testing.assert_array_equal(np.concatenate(halves), dropout(X, KEYS, 0.5))


def test_fold_in_gives_streams_that_differ():
    streams = [KEYS, *(fold_in(KEYS, number) for number in range(3))]
    data = np.concatenate([jax.random.key_data(keys) for keys in streams])
    assert len(np.unique(data, axis=0)) == len(data) == 16
