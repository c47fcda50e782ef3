"""The rule by which a validation curve is flat."""

import numpy as np
import pytest

from flaxformer_lab.ablation.convergence import is_converged

STEPS = (20, 40, 60, 80, 100)
RULE = {"higher_is_better": True, "tolerance": 0.002, "noise_tolerance": 0.5}


def converged(*curves, steps=STEPS, **rule):
    return is_converged(steps, np.array(curves), **RULE | rule)


@pytest.mark.parametrize(
    ("last", "flat"), [((0.8, 0.801), True), ((0.8, 0.81), False), ((0.81, 0.8), False), ((0.7, 0.6), True)]
)
def test_the_best_of_the_last_quarter_gains_nothing_on_the_quarter_before(last, flat):
    """The quarters: 60 of 100 updates, then 80 and 100. What came earlier does not count."""
    assert converged([0.9, 0.2, 0.8, *last]) is flat


def test_a_loss_falls():
    assert converged([1.0, 0.9, 0.5, 0.4, 0.3], higher_is_better=False) is False
    assert converged([1.0, 0.9, 0.5, 0.6, 0.7], higher_is_better=False) is True


def test_a_gain_below_the_noise_of_seeds_is_none():
    # They gain 0.01 each, and end at 0.5 to 0.9: an interquartile range of 0.2, so a standard deviation of 0.148.
    curves = [[0, 0, level - 0.01, level, level] for level in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert converged(*curves, noise_tolerance=0.07) is True
    assert converged(*curves, noise_tolerance=0.06) is False


def test_one_seed_that_fails_does_not_hide_what_the_others_gain():
    curves = [[0, 0, 0.7, 0.8, 0.8]] * 4 + [[0, 0, 0, 0, 0]]
    assert converged(*curves) is False


@pytest.mark.parametrize("steps", [(100,), (50, 100), (75, 100)])
def test_too_few_evaluations_tell_nothing(steps):
    expected = True if steps == (75, 100) else None
    assert is_converged(steps, np.full((2, len(steps)), 0.5), **RULE) is expected


def test_a_curve_that_ends_in_nothing_is_not_flat():
    assert converged([0.1, 0.2, 0.8, 0.8, np.nan]) is False
