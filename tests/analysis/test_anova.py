"""The functional ANOVA against functions whose terms are known, and against scipy's estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.analysis.anova import MAX_PAIR_INPUTS, functional_anova
from flaxformer_lab.task_config import PlantedInteractionsConfig
from flaxformer_lab.tasks.probes import PlantedInteractions


def normals(number, inputs=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(number, inputs)), jnp.float32)


def square_and_a_small_product(x):
    return x[:, 0] ** 2 + 0.01 * x[:, 1] * x[:, 2]


def product_of_three_and_one(x):
    return x[:, 0] * x[:, 1] * x[:, 2] + x[:, 3]


def relu_of_a_sum(x):
    return jax.nn.relu(x[:, 0] + x[:, 1])


def additive(x):
    return jnp.sum(jnp.sin(x) + x**2 + 0.3 * x, axis=1)


def relu_share():
    """1 - 2 Var E[relu(x + y) | x] / Var relu(x + y), by the arc-cosine kernel (Cho & Saul 2009) at 60 degrees."""
    square_of_mean, angle = 1 / np.pi, np.pi / 3
    of_one = (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi - square_of_mean
    return 1 - 2 * of_one / (1 - square_of_mean)


@pytest.mark.parametrize(
    ("function", "share", "inputs"),
    [
        (square_and_a_small_product, 1e-4 / (2 + 1e-4), 4),
        (product_of_three_and_one, 0.5, 4),
        (relu_of_a_sum, relu_share(), 2),
        (lambda x: x[:, 0] * x[:, 1], 1.0, 2),
    ],
)
def test_the_share_of_interaction_is_known(function, share, inputs):
    found, error = functional_anova(function, normals(8192, inputs)).interaction
    assert abs(found - share) < 4 * error < 0.25 * share


@pytest.mark.parametrize("share", [0.1, 0.5, 0.909])
def test_the_planted_share_is_found(share):
    truth = PlantedInteractions(PlantedInteractionsConfig(interaction_share=share)).truth
    found, error = functional_anova(lambda x: truth(x)[:, 0], normals(4096, 8)).interaction
    assert abs(found - share) < 4 * error < 0.16


@pytest.mark.parametrize("inputs", [16, pytest.param(128, marks=pytest.mark.slow)])
def test_interaction_of_high_order_among_many_inputs(inputs):
    """f = prod (1 + c x_i) has V_i = c^2 of (1 + c^2)^n - 1; products of residuals alone would be off by far more."""
    squared = 2 / inputs
    found, error = functional_anova(lambda x: jnp.prod(1 + squared**0.5 * x, axis=1), normals(2048, inputs)).interaction
    share = 1 - inputs * squared / ((1 + squared) ** inputs - 1)
    assert abs(found - share) < 4 * error < 0.3


def test_a_sum_of_functions_of_one_input_has_none():
    found = functional_anova(additive, normals(64))
    assert abs(found.interaction.value) < 1e-10
    np.testing.assert_allclose(found.pairs, 0, atol=1e-10)
    np.testing.assert_allclose(functional_anova(additive, normals(8192)).first_order, 0.25, atol=0.02)


def test_indices_of_each_order():
    """Of f = x0 + 2 x1 x2 + x0 x1 x2 the terms have variances 1, 4 and 1."""
    found = functional_anova(
        lambda x: x[:, 0] + 2 * x[:, 1] * x[:, 2] + x[:, 0] * x[:, 1] * x[:, 2], normals(16384), backgrounds=16
    )
    np.testing.assert_allclose(found.first_order, [1 / 6, 0, 0, 0], atol=0.02)
    np.testing.assert_allclose(found.total, [2 / 6, 5 / 6, 5 / 6, 0], atol=0.03)
    expected = np.zeros((4, 4))
    expected[1, 2] = expected[2, 1] = 4 / 6
    np.testing.assert_allclose(found.pairs, expected, atol=0.04)
    assert found.total[3] == 0 and found.pairs[0, 3] == 0  # what is not read has exactly none


def test_scipy_finds_the_same_of_a_network():
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(3, 16)), generator.normal(size=16)
    found = functional_anova(lambda x: jax.nn.relu(x @ first + 0.5) @ second, normals(16384, 3))
    theirs = stats.sobol_indices(
        func=lambda x: np.maximum(x.T @ first + 0.5, 0) @ second, n=16384, dists=[stats.norm()] * 3, rng=generator
    )
    np.testing.assert_allclose(found.first_order, theirs.first_order, atol=0.03)
    np.testing.assert_allclose(found.total, theirs.total_order, atol=0.03)


def test_inputs_that_depend_on_each_other_are_drawn_apart():
    """Of x0 x1 with x1 = x0 the columns' own distributions are normal: all of it is interaction."""
    x = normals(4096, 1)
    found = functional_anova(lambda x: x[:, 0] * x[:, 1], jnp.concatenate([x, x], axis=1))
    assert found.interaction.value == pytest.approx(1, abs=0.1)


def test_pairs_are_left_out_of_many_inputs():
    assert functional_anova(additive, normals(8, MAX_PAIR_INPUTS + 1)).pairs is None
    assert functional_anova(additive, normals(8, 1)).pairs.shape == (1, 1)


@pytest.mark.parametrize(("examples", "backgrounds"), [(1, 8), (8, 1)])
def test_too_few_points_are_refused(examples, backgrounds):
    with pytest.raises(ValueError, match="2 examples and 2 backgrounds"):
        functional_anova(additive, normals(examples), backgrounds=backgrounds)
