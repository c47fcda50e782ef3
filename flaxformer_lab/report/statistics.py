"""Statistics of differences: paired by seed, with intervals, corrected for multiple comparisons.

Every function is deterministic: resampling uses a generator with a fixed seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

Values = Sequence[float | int] | Float[np.ndarray, " values"]
RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval; the ends are NaN where a single value tells nothing of them."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: Values, *, seed: int = 0) -> Interval:
    """The mean and its 95% interval by the percentile bootstrap, widened for small samples.

    Resamples of n values vary too little by sqrt((n - 1) / n), and their quantiles are the normal law's where Student's
    belong; both are corrected (Hesterberg 2015, section 3). With 5 normal values the plain interval contains the true
    mean in 84% of cases, this one in 94% (tests/report/test_statistics.py). The studentised bootstrap covers as well,
    but one outlier among 5 values makes it hundreds of times as wide.
    """
    values = np.asarray(values, np.float64)
    mean, number = float(np.mean(values)), len(values)
    if number < 2 or not np.all(np.isfinite(values)):
        return Interval(mean, float("nan"), float("nan"))
    resampled = np.random.default_rng(seed).choice(values, (RESAMPLES, number)).mean(axis=1)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    quantile = (1 + CONFIDENCE) / 2
    factor = np.sqrt(number / (number - 1)) * stats.t.ppf(quantile, number - 1) / stats.norm.ppf(quantile)
    return Interval(mean, mean - float(factor * (mean - low)), mean + float(factor * (high - mean)))


def paired_p_value(differences: Values) -> float:
    """Two-sided p of the paired t-test that the mean difference is 0; NaN for fewer than two pairs."""
    differences = np.asarray(differences, np.float64)
    if len(differences) < 2 or not np.all(np.isfinite(differences)):
        return float("nan")
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Values) -> Float[np.ndarray, " values"]:
    """p-values corrected for their number (Holm 1979): the k-th smallest times (number - k + 1), never decreasing.

    NaN stays NaN and does not count.
    """
    p_values = np.asarray(p_values, np.float64)
    corrected = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1.0)
    return corrected


def probability_of_improvement(ours: Sequence | np.ndarray, theirs: Sequence | np.ndarray) -> float:
    """P(a run of ours scores above one of theirs), ties counted half (Agarwal et al. 2021, section 4.3)."""
    if not len(ours) or not len(theirs):
        return float("nan")
    return float(stats.mannwhitneyu(ours, theirs).statistic) / (len(ours) * len(theirs))


def interquartile_mean(values: Values) -> float:
    """The mean without the lowest and the highest quarter (Agarwal et al. 2021, section 4.3)."""
    return float(stats.trim_mean(np.asarray(values, np.float64), 0.25))


def steps_to_threshold(
    steps: Sequence[int], curves: Float[np.ndarray, "seeds evaluations"], threshold: float, *, higher_is_better: bool
) -> list[int | None]:
    """For each seed, the first evaluated step at which the score has reached the threshold; None where none has."""
    reached: Bool[np.ndarray, "seeds evaluations"] = curves >= threshold if higher_is_better else curves <= threshold
    return [int(steps[int(np.argmax(row))]) if row.any() else None for row in reached]
