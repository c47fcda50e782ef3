"""What a whole design of variants says: main effects and interaction of two factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from flaxformer_lab.report.statistics import CONFIDENCE, Interval
from flaxformer_lab.report.summary import Score, Summary


@dataclass(frozen=True)
class Effect:
    """What a factor explains: its share of the variance over all runs, and p of its F-test."""

    name: str
    share: Interval
    p_value: float


@dataclass(frozen=True)
class Factorial:
    """Two factors crossed on one task. means: of the score, by level of the first and of the second."""

    names: tuple[str, str]
    levels: tuple[tuple[str, ...], tuple[str, ...]]
    means: Float[np.ndarray, "first second"]
    effects: tuple[Effect, ...]


def factorial(summary: Summary, task: str) -> Factorial | None:
    """The factorial of a task, of those levels that it has; None without factors, or before its cells have finished."""
    config = summary.grid.config
    variants = config.variants.keys() | {name for entry in config.tasks.values() for name in entry.variants}
    names = {pair: name if name in variants else config.baseline for pair, name in config.pairs.items()}
    planned = [pair for pair, name in names.items() if summary.grid.cell(task, name) is not None]
    scores = {pair: summary.score(task, names[pair]) for pair in planned}
    first, second = (tuple(dict.fromkeys(pair[side] for pair in planned)) for side in (0, 1))
    if not planned or len(planned) < len(first) * len(second) or None in scores.values():
        return None
    values = np.array([scores[pair].values for pair in planned]).reshape(len(first), len(second), -1)
    of_factors = (config.factors[0].name, config.factors[1].name)
    return Factorial(of_factors, (first, second), values.mean(axis=-1), two_way_anova(values, of_factors))


def two_way_anova(values: Float[np.ndarray, "first second seeds"], names: Sequence[str]) -> tuple[Effect, ...]:
    """The shares of the variance of two factors, of their interaction and of the seeds (Fisher 1925).

    They are epsilon squared (Kelley 1935): from each sum of squares is taken what the spread of seeds adds to it, so
    that they estimate the shares with endless seeds. p: of the F-tests against the spread of seeds, which count as
    replicates. Intervals: 95%, by the jackknife over seeds, all cells without the same one (Efron and Tibshirani 1993,
    chapter 11), with Student's quantiles and inside 0 and 1; NaN of fewer than three seeds, since without
    one of two nothing is known of their spread. p is NaN of a single seed.
    """
    seeds = values.shape[2]
    squares, freedom = _sums_of_squares(values)
    shares, half = _shares(values), np.full(4, np.nan)
    if seeds > 2:
        without = np.array([_shares(np.delete(values, seed, axis=2)) for seed in range(seeds)])
        half = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * np.sqrt((seeds - 1) * np.var(without, axis=0))
    with np.errstate(invalid="ignore"):  # of one seed there is no spread
        quotients = squares[:3] / freedom[:3] / (squares[3] / freedom[3])
    p_values = [*stats.f.sf(quotients, freedom[:3], freedom[3]), np.nan]
    ends = np.clip([shares, shares - half, shares + half], 0.0, 1.0)  # a share that is 0 may seem to be below it
    rows = zip((*names, "interaction", "seeds"), *ends, p_values, strict=True)
    return tuple(Effect(name, Interval(*map(float, ends)), float(p)) for name, *ends, p in rows)


def _shares(values: Float[np.ndarray, "first second seeds"]) -> Float[np.ndarray, " 4"]:
    squares, freedom = _sums_of_squares(values)
    noise = squares[3] / max(freedom[3], 1)  # of a single seed nothing is known
    explained = squares[:3] - noise * freedom[:3]
    return np.array([*explained, squares.sum() - explained.sum()]) / squares.sum()


def _sums_of_squares(
    values: Float[np.ndarray, "first second seeds"],
) -> tuple[Float[np.ndarray, " 4"], Int[np.ndarray, " 4"]]:
    """Of the first factor, the second, their interaction, and the seeds within each pair; and degrees of freedom."""
    first, second, seeds = values.shape
    cells, all_ = values.mean(axis=2), values.mean()
    rows, columns = cells.mean(axis=1, keepdims=True), cells.mean(axis=0, keepdims=True)
    parts = (rows - all_, columns - all_, cells - rows - columns + all_)
    explained = [np.sum(np.broadcast_to(part, cells.shape) ** 2) * values.shape[2] for part in parts]
    freedom = np.array([first - 1, second - 1, (first - 1) * (second - 1), first * second * (seeds - 1)])
    return np.array([*explained, np.sum((values - cells[:, :, None]) ** 2)]), freedom


def series_of(summary: Summary, task: str) -> dict[str, list[Score]]:
    """The finished scores of each series, in its order; those with two or more are curves."""
    found = {}
    for name, variants in summary.grid.config.series.items():
        scores = [summary.score(task, variant) for variant in variants]
        found[name] = [score for score in scores if score is not None]
    return {name: scores for name, scores in found.items() if scores}


def front_families(summary: Summary, task: str) -> dict[str, list[Score]]:
    """The series all of whose members were measured as exported files, for Pareto fronts; none where they are few."""
    measured = {
        name: [s for s in scores if "int8_score" in s.measures] for name, scores in series_of(summary, task).items()
    }
    return {name: scores for name, scores in measured.items() if scores}
