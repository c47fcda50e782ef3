import numpy as np
import pytest

from flaxformer_lab.analysis.estimate import jackknife, mean, ratio

SAMPLES = np.random.default_rng(0).normal(2, 1, size=(2, 40))


def leave_one_out(statistic, *arrays):
    """The textbook loop."""
    number = len(arrays[0])
    without = [statistic(*(np.delete(array, i, axis=0) for array in arrays)) for i in range(number)]
    return np.sqrt((number - 1) / number * np.sum(np.square(np.array(without) - np.mean(without))))


def test_the_error_of_a_mean_is_the_known_one():
    value, error = mean(SAMPLES[0])
    assert value == pytest.approx(SAMPLES[0].mean())
    assert error == pytest.approx(SAMPLES[0].std(ddof=1) / np.sqrt(40))


def test_the_error_of_a_ratio_is_that_of_a_plain_loop():
    value, error = ratio(*SAMPLES)
    assert value == pytest.approx(SAMPLES[0].sum() / SAMPLES[1].sum())
    assert error == pytest.approx(leave_one_out(lambda a, b: a.mean() / b.mean(), *SAMPLES))


def test_the_error_of_a_statistic_of_vectors_is_that_of_a_plain_loop():
    matrix = np.random.default_rng(1).normal(1, 1, size=(12, 3, 2))
    found = jackknife(lambda means, b: np.sum(means**2, axis=-1) / b[..., 0], matrix, SAMPLES[0, :12])
    assert found.standard_error == pytest.approx(
        leave_one_out(lambda a, b: np.sum(a.mean(axis=0) ** 2) / b.mean(), matrix, SAMPLES[0, :12])
    )


def test_the_error_is_how_far_repetitions_lie_apart():
    drawn = np.random.default_rng(2).normal(2, 1, size=(300, 2, 50))
    found = [ratio(*each) for each in drawn]
    apart = np.std([each.value for each in found])
    assert np.mean([each.standard_error for each in found]) == pytest.approx(apart, rel=0.15)


def test_one_example_tells_nothing_of_the_error():
    value, error = mean(np.array([3.0]))
    assert value == 3 and np.isnan(error)


@pytest.mark.filterwarnings("error")
def test_a_share_of_nothing_is_not_a_number_and_no_warning():
    assert np.isnan(ratio(np.zeros(4), np.zeros(4)).value)
