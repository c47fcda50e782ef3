"""The rule by which a validation curve is flat, on synthetic curves."""

import numpy as np
import pytest

from flaxformer_lab.ablation.convergence import is_converged

STEPS = (20, 40, 60, 80, 100)
RULE = {"higher_is_better": True, "tolerance": 0.002, "noise_tolerance": 2.0}
RNG = np.random.default_rng(0)
CURVES = {
    "flat": [0.5] * 5,
    "rises": [0.1, 0.5, 0.88, 0.89, 0.9],
    "rises, then is flat": [0.1, 0.5, 0.9, 0.9, 0.9],
    "falls": [0.9, 0.9, 0.9, 0.8, 0.7],
}


def converged(*curves, steps=STEPS, **rule):
    return is_converged(steps, np.array(curves), **RULE | rule)


def share_converged(curve, noise, seeds=5, number=400):
    draws = (np.array(curve) + noise * RNG.normal(size=(seeds, len(curve))) for _ in range(number))
    return np.mean([is_converged(STEPS, draw, **RULE) for draw in draws])


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.03, 0.3])
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("name", ["flat", "rises, then is flat", "falls"])
def test_a_flat_curve_is_flat_however_noisy_it_is(name, noise, seeds):
    assert share_converged(CURVES[name], noise, seeds) > 0.9


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.003])
def test_a_curve_that_rises_is_not_flat(noise):
    assert share_converged(CURVES["rises"], noise) < 0.01


def test_the_best_of_many_noisy_scores_gains_nothing():
    """One evaluation in the quarter before, five in the last."""
    steps = (60, 76, 82, 88, 94, 100)
    draws = 0.03 * RNG.normal(size=(400, 5, 6))
    assert np.mean([is_converged(steps, draw, **RULE) for draw in draws]) > 0.9


@pytest.mark.parametrize(
    ("last", "flat"), [((0.801, 0.801), True), ((0.8, 0.81), False), ((0.81, 0.8), False), ((0.7, 0.6), True)]
)
def test_the_quarters_are_compared_by_their_means(last, flat):
    """The quarters: 60 of 100 updates, then 80 and 100. What came earlier does not count."""
    assert converged([0.9, 0.2, 0.8, *last], noise_tolerance=0.0) is flat


def test_a_loss_falls():
    assert converged([1.0, 0.9, 0.5, 0.4, 0.3], higher_is_better=False) is False
    assert converged([1.0, 0.9, 0.5, 0.6, 0.7], higher_is_better=False) is True


def test_the_noise_is_the_scatter_around_a_line():
    """0.5, 0.9, 0.7 at 60, 80 and 100: a line leaves -0.1, 0.2, -0.1, so a scatter of sqrt(0.06), and gains 0.3."""
    error = np.sqrt(0.06) * np.sqrt((1 / 2 + 1) / 2)
    curves = [[0, 0, level, level + 0.4, level + 0.2] for level in (0.1, 0.5)]
    assert converged(*curves, noise_tolerance=1.01 * 0.3 / error) is True
    assert converged(*curves, noise_tolerance=0.99 * 0.3 / error) is False


@pytest.mark.parametrize(
    "curves",
    [
        [[0, 0, 0.7, 0.8, 0.8]] * 4 + [[0] * 5],
        [[0, 0, 0.8, 0.8, 0.8]] * 4 + [[0, 0, 0.2, 0.4, 0.8]],
        [[0, 0, 0.8, 0.8 + gain, 0.8 + 1.2 * gain] for gain in (0.01, 0.02, 0.03, 0.05, 0.1)],
    ],
    ids=["one fails, the others rise", "one is late, the others have arrived", "each rises, but by another amount"],
)
def test_seeds_that_differ_do_not_hide_that_some_rise(curves):
    assert converged(*curves) is False


@pytest.mark.parametrize("steps", [(100,), (50, 100), (75, 100)])
def test_too_few_evaluations_tell_nothing(steps):
    expected = True if steps == (75, 100) else None
    assert is_converged(steps, np.full((2, len(steps)), 0.5), **RULE) is expected


def test_a_curve_that_ends_in_nothing_is_not_flat():
    assert converged([0.1, 0.2, 0.8, 0.8, np.nan]) is False
