"""A measured value with its standard error, over examples."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Estimate(NamedTuple):
    """A value and its standard error (NaN for a single example)."""

    value: float
    standard_error: float


def jackknife(
    statistic: Callable[..., Float[np.ndarray, "*any"]], *per_example: Float[np.ndarray, "examples ..."]
) -> Estimate:
    """`statistic` of the examples' means, with its standard error (Efron & Stein 1981).

    statistic takes each array's mean over examples, [..., size], and returns [...]. It is called once for all examples,
    then once for all sets that leave one example out.
    """
    arrays = [np.asarray(array, np.float64).reshape(len(array), -1) for array in per_example]
    number = len(arrays[0])
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, without a warning
        value = float(statistic(*(array.mean(axis=0) for array in arrays)))
        if number < 2:
            return Estimate(value, float("nan"))
        left_out = statistic(*((array.sum(axis=0) - array) / (number - 1) for array in arrays))
    spread = np.sum(np.square(left_out - np.mean(left_out)))
    return Estimate(value, float(np.sqrt(spread * (number - 1) / number)))


def mean(per_example: Float[np.ndarray, " examples"]) -> Estimate:
    """The mean over examples."""
    return jackknife(lambda means: means[..., 0], per_example)


def ratio(above: Float[np.ndarray, " examples"], below: Float[np.ndarray, " examples"]) -> Estimate:
    """The ratio of two means over examples."""
    return jackknife(lambda a, b: a[..., 0] / b[..., 0], above, below)
