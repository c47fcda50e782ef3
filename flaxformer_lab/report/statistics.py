"""Statistics of differences: paired by seed, with intervals, corrected for multiple comparisons.

Where all seeds are judged on the same test examples, these are a sample too, and their error does not shrink with more
seeds. So whatever judges a mean over seeds also takes `examples`: what each test example adds to that mean.
Every function is deterministic: resampling uses a generator with a fixed seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

Values = Sequence[float | int] | Float[np.ndarray, " values"]
Examples = Float[np.ndarray, " examples"] | None
Limits = tuple[int | float | None, int | float | None]
RESAMPLES = 10_000
CONFIDENCE = 0.95
SIGNIFICANT = 0.05  # a corrected p below this is no chance
FEWEST_SEEDS = 5  # with fewer nothing is decided
WIDEST = 2.0  # half of an interval, in halves of Student's
# How often the interval of a mean holds it, by law and number of seeds, from `python tools/coverage.py`.
COVERAGE = {
    "normal": {5: 0.94, 10: 0.94, 15: 0.95},
    "half-normal": {5: 0.95, 10: 0.95, 15: 0.95},
    "lognormal": {5: 0.89, 10: 0.90, 15: 0.91},
    "one run in ten fails": {5: 0.41, 10: 0.66, 15: 0.79},
    "one run in ten fails, the rest": {5: 0.94, 10: 0.94, 15: 0.95},
    "one run in ten fails, the share": {5: 0.99, 10: 0.99, 15: 0.99},
}


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval; the ends are NaN where nothing is known of the spread."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Values, *, examples: Examples = None, limits: Limits = (None, None), seed: int = 0
) -> Interval:
    """The mean and its 95% interval, by the bootstrap over seeds and test examples together, inside the limits.

    It is studentised: quantiles of (mean* - mean) / error* over resamples, times the error (Efron and Tibshirani 1993,
    section 12.5), so it is longer on the side of a tail. Quantiles beyond twice those of Student's law are cut there,
    since one outlier among five values would make them endless; with fewer than four values they are Student's. With 5
    half-normal values Student's interval holds the mean in 92% of cases and this one in 95% (`COVERAGE`). Resampling
    seeds and examples apart and adding the variances errs on the wide side (Owen 2007).

    The ends are NaN where values are not finite, or are all the same and so tell nothing of their spread.
    """
    values = np.asarray(values, np.float64)
    mean, number = float(np.mean(values)), len(values)
    examples = None if examples is None or len(examples) < 2 else examples  # of one the spread is not known
    error, freedom = standard_error(values, examples)
    if not error > 0:
        return Interval(mean, float("nan"), float("nan"))
    ends = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    students = stats.t.ppf(ends, freedom)
    quantiles = students
    if number > 3:
        rng = np.random.default_rng(seed)
        resampled = rng.choice(values, (RESAMPLES, number))
        moved, variance = resampled.mean(axis=1) - mean, resampled.var(axis=1, ddof=1) / number
        if examples is not None:
            moved = moved + _resampled_means(examples, rng) - np.mean(examples)
            variance = variance + np.var(examples, ddof=1) / len(examples)
        spread = variance > 1e-12 * error**2
        quantiles = np.quantile(moved[spread] / np.sqrt(variance[spread]), ends)
        quantiles = np.clip(quantiles, WIDEST * students[0], WIDEST * students[1])
    low, high = (None if end is None else float(end) for end in limits)
    return Interval(
        mean,
        max(mean - float(quantiles[1]) * error, -np.inf if low is None else low),
        min(mean - float(quantiles[0]) * error, np.inf if high is None else high),
    )


def standard_error(values: Values, examples: Examples = None) -> tuple[float, float]:
    """The standard error of the mean, from the spread of seeds and of test examples, and its degrees of freedom.

    Those of a sum of two variances are Satterthwaite's (1946). NaN for fewer than two values, for values that are not
    finite, and for equal ones.
    """
    values = np.asarray(values, np.float64)
    # Equal values differ by rounding after a subtraction.
    if len(values) < 2 or not np.all(np.isfinite(values)) or np.ptp(values) <= 1e-12 * np.max(np.abs(values)):
        return float("nan"), float("nan")
    parts = [(np.var(values, ddof=1) / len(values), len(values) - 1)]
    if examples is not None and len(examples) > 1:
        parts.append((np.var(examples, ddof=1) / len(examples), len(examples) - 1))
    variance = sum(each for each, _ in parts)
    return float(np.sqrt(variance)), float(variance**2 / sum(each**2 / freedom for each, freedom in parts))


def _resampled_means(values: Float[np.ndarray, " values"], rng: np.random.Generator) -> Float[np.ndarray, " resamples"]:
    """Means of resamples; of equal values only the number is drawn."""
    distinct, counts = np.unique(values, return_counts=True)
    return rng.multinomial(len(values), counts / len(values), size=RESAMPLES) @ distinct / len(values)


def paired_p_value(differences: Values, *, examples: Examples = None, null: float = 0.0) -> float:
    """Two-sided p of the paired t-test that the mean difference is `null`; NaN where `standard_error` is."""
    error, freedom = standard_error(differences, examples)
    return float(2 * stats.t.sf(abs(np.mean(differences) - null) / error, freedom))


def equivalence_p_value(differences: Values, margin: float, *, examples: Examples = None) -> float:
    """p of the two one-sided t-tests that the mean difference is not within the margin of 0 (Schuirmann 1987)."""
    error, freedom = standard_error(differences, examples)
    return float(stats.t.sf((margin - abs(np.mean(differences))) / error, freedom))


def share_interval(hits: float, number: int) -> Interval:
    """A share with its 95% interval (Clopper and Pearson 1934); a tie may count as half a hit."""
    if not number:
        return Interval(float("nan"), float("nan"), float("nan"))
    tail = (1 - CONFIDENCE) / 2
    low = float(stats.beta.ppf(tail, hits, number - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, number - hits)) if hits < number else 1.0
    return Interval(hits / number, low, high)


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


def probability_of_improvement(differences: Values) -> Interval:
    """The share of seeds for which the paired difference is above 0, ties counted half, with its interval.

    All are NaN where a difference is: it has no sign.
    """
    differences = np.asarray(differences, np.float64)
    if np.isnan(differences).any():
        return Interval(float("nan"), float("nan"), float("nan"))
    return share_interval(float(np.sum(differences > 0) + np.sum(differences == 0) / 2), len(differences))


def interquartile_mean(values: Values) -> float:
    """The mean without the lowest and the highest quarter (Agarwal et al. 2021, section 4.3)."""
    return float(stats.trim_mean(np.asarray(values, np.float64), 0.25))


def steps_to_threshold(
    steps: Sequence[int], curves: Float[np.ndarray, "seeds evaluations"], threshold: float, *, higher_is_better: bool
) -> list[int | None]:
    """For each seed, the first evaluated step at which the score has reached the threshold; None where none has."""
    reached: Bool[np.ndarray, "seeds evaluations"] = curves >= threshold if higher_is_better else curves <= threshold
    return [int(steps[int(np.argmax(row))]) if row.any() else None for row in reached]
