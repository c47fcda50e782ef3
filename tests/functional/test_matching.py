"""Assignments against scipy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from flaxformer_lab.functional.matching import linear_sum_assignment

assign = jax.jit(jax.vmap(linear_sum_assignment))


def costs(kind, generator, shape):
    if kind == "whole":  # with many ties, all sums exact
        return generator.integers(-3, 4, shape).astype(np.float32)
    if kind == "product":  # on which greedy choices fail
        return (np.arange(1, shape[1] + 1)[:, None] * np.arange(1, shape[2] + 1)[None] + np.zeros(shape)).astype("f4")
    return generator.normal(size=shape).astype(np.float32) * 10.0 ** generator.integers(-3, 4, (shape[0], 1, 1))


@pytest.mark.parametrize("kind", ["whole", "product", "scales"])
@pytest.mark.parametrize("size", [(4, 4), (5, 12)])
def test_the_sum_is_the_least(kind, size):
    generator = np.random.default_rng(0)
    cost = costs(kind, generator, (100, *size)).astype(np.float32)
    valid = generator.uniform(size=(100, size[0])) < 0.7
    valid[0], valid[1] = True, False
    columns = np.asarray(assign(cost, valid))
    for each, kept, chosen in zip(cost.astype(np.float64), valid, columns, strict=True):
        rows = np.flatnonzero(kept)
        expected = optimize.linear_sum_assignment(each[rows])
        ours = chosen[rows]
        assert len(set(ours)) == len(rows) and all(0 <= column < size[1] for column in ours)
        assert each[rows, ours].sum() == pytest.approx(each[rows][expected].sum(), rel=1e-5, abs=1e-6)
        if kind == "scales":  # where the best is unique
            np.testing.assert_array_equal(ours, expected[1])


def test_costs_that_are_not_finite_end_all_the_same():
    bad = np.full((3, 4, 5), np.nan, np.float32)
    bad[1], bad[2] = np.inf, -np.inf
    assert np.shape(assign(bad, np.ones((3, 4), bool))) == (3, 4)


def test_more_rows_than_columns_are_refused():
    with pytest.raises(ValueError, match="3 rows cannot each have one of 2 columns"):
        linear_sum_assignment(jnp.zeros((3, 2)))
