"""From the results of cells to what is compared: scores at the chosen learning rate, and differences paired by seed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxformer_lab.ablation.convergence import is_converged
from flaxformer_lab.ablation.grid import AblationConfig, Cell, Grid
from flaxformer_lab.ablation.rates import Edge, best_learning_rate, edge_of, mean_scores, progress
from flaxformer_lab.ablation.store import Result, Store, from_json
from flaxformer_lab.report.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    interquartile_mean,
    paired_p_value,
    probability_of_improvement,
    steps_to_threshold,
)
from flaxformer_lab.tasks import PrimaryMetric

SLACK = 0.03  # of a bound: what fresh test examples may add to a score by luck, and what the theorem leaves out
SIGNIFICANT = 0.05  # a difference whose corrected p is below this counts as one


@dataclass(frozen=True)
class Score:
    """What one variant reached on one task, at the learning rate that was best on validation. One value per seed."""

    task: str
    variant: str
    metric: PrimaryMetric
    learning_rate: float
    seeds: tuple[int, ...]
    values: Float[np.ndarray, " seeds"]
    interval: Interval
    interquartile_mean: float
    parameters: int
    forward_flops: int
    bound: dict[str, Any] | None
    steps: tuple[int, ...]
    curves: Float[np.ndarray, "seeds evaluations"]
    reached: tuple[int | None, ...] | None  # steps to the task's threshold
    measures: dict[str, Float[np.ndarray, " seeds"]]
    seconds: float
    by_rate: dict[float, float]  # mean validation score of each learning rate that was tried; NaN where one diverged
    rate_edge: Edge | None  # where the chosen rate lies at an edge of these
    converged: bool | None  # whether the validation curves are flat at the end; None where nothing tells

    @property
    def bound_held(self) -> bool | None:
        """Whether the scores agree with theory's bound: not all of their interval is better than it.

        None where there is no bound, or a run that is not finite.
        """
        if self.bound is None or self.bound["metric"] != self.metric.name or not np.isfinite(self.interval.mean):
            return None
        better = self.metric.higher_is_better
        worst = (
            self.interval.mean if np.isnan(self.interval.low) else (self.interval.low if better else self.interval.high)
        )
        return bool((1 if better else -1) * (worst - self.bound["value"]) <= SLACK)


@dataclass(frozen=True)
class Difference:
    """A variant less the baseline, paired by seed; positive where the variant is better."""

    task: str
    variant: str
    baseline: str
    values: Float[np.ndarray, " seeds"]
    interval: Interval
    p_value: float
    corrected_p: float  # for the number of variants that the task compares
    probability_of_improvement: float

    @property
    def direction(self) -> str:
        """Better or worse; level where chance is a likely cause, after correction for the number of comparisons."""
        if not self.corrected_p < SIGNIFICANT:
            return "level"
        return "better" if self.interval.mean > 0 else "worse"


@dataclass(frozen=True)
class Summary:
    """An ablation's scores and differences, as far as it has come."""

    grid: Grid
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    failures: tuple[tuple[Cell, str], ...]
    missing: tuple[Cell, ...]

    def score(self, task: str, variant: str) -> Score | None:
        """The score of a pair, or None where there is none (yet)."""
        return next((each for each in self.scores if (each.task, each.variant) == (task, variant)), None)

    def difference(self, task: str, variant: str) -> Difference | None:
        """The difference of a pair to the baseline, or None."""
        return next((each for each in self.differences if (each.task, each.variant) == (task, variant)), None)


def summarise(grid: Grid, store: Store) -> Summary:
    """Reads every finished cell of the grid."""
    scores, failures, missing = [], [], []
    for cell in grid.cells:
        result, following = progress(cell, store, grid.config)
        if result is not None:
            scores.append(score_of(cell, result, grid.config))
        if following is not None:
            error = store.failure(following)
            if error is not None:
                failures.append((cell, error))
            else:
                missing.append(cell)
    differences = [
        difference
        for task in grid.config.tasks
        for difference in _differences([each for each in scores if each.task == task], grid.config.baseline)
    ]
    return Summary(grid, tuple(scores), tuple(differences), tuple(failures), tuple(missing))


def score_of(cell: Cell, result: Result, config: AblationConfig) -> Score:
    """The score of a cell from its stored result, extensions included."""
    replicas, threshold = result["replicas"], config.tasks[cell.task].threshold
    metric, better = cell.primary_metric, cell.primary_metric.higher_is_better
    rate = best_learning_rate(result, metric, config.score_tolerance)
    tolerances = {"tolerance": config.score_tolerance, "noise_tolerance": config.noise_tolerance}
    chosen = sorted((each for each in replicas if each["learning_rate"] == rate), key=lambda each: each["seed"])
    values = np.array([from_json(each["test"][metric.name]) for each in chosen])
    curves = np.array([[from_json(value) for value in each["validation"][metric.name]] for each in chosen])
    steps = tuple(result["steps"])
    return Score(
        task=cell.task,
        variant=cell.variant,
        metric=metric,
        learning_rate=rate,
        seeds=tuple(each["seed"] for each in chosen),
        values=values,
        interval=bootstrap_interval(values),
        interquartile_mean=interquartile_mean(values),
        parameters=result["parameters"],
        forward_flops=result["forward_flops"],
        bound=result["bound"],
        steps=steps,
        curves=curves,
        reached=None
        if threshold is None
        else tuple(steps_to_threshold(steps, curves, threshold, higher_is_better=better)),
        measures={
            name: np.array([from_json(each["measures"][name]) for each in chosen]) for name in chosen[0]["measures"]
        },
        seconds=result["seconds"],
        by_rate=mean_scores(result, metric),
        rate_edge=edge_of(result, metric, config.score_tolerance),
        converged=is_converged(steps, curves, higher_is_better=better, **tolerances),
    )


def _differences(scores: list[Score], baseline: str) -> list[Difference]:
    """Every variant of a task against its baseline, corrected for how many there are."""
    base = next((each for each in scores if each.variant == baseline), None)
    others = [each for each in scores if each.variant != baseline]
    if base is None or not others:
        return []
    sign = 1 if base.metric.higher_is_better else -1
    paired = [sign * (each.values - base.values) for each in others]
    p_values = [paired_p_value(values) for values in paired]
    return [
        Difference(
            task=each.task,
            variant=each.variant,
            baseline=baseline,
            values=values,
            interval=bootstrap_interval(values),
            p_value=p_value,
            corrected_p=float(corrected),
            probability_of_improvement=probability_of_improvement(sign * each.values, sign * base.values),
        )
        for each, values, p_value, corrected in zip(others, paired, p_values, holm(p_values), strict=True)
    ]
