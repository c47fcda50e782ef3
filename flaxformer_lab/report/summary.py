"""From the results of cells to what is compared: scores at the chosen learning rate, and differences paired by seed."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from flaxformer_lab.ablation.convergence import is_converged
from flaxformer_lab.ablation.grid import AblationConfig, Cell, Grid
from flaxformer_lab.ablation.rates import Edge, best_learning_rate, edge_of, mean_scores, progress
from flaxformer_lab.ablation.store import Result, Store, from_json
from flaxformer_lab.report.statistics import (
    FEWEST_SEEDS,
    SIGNIFICANT,
    Examples,
    Interval,
    Limits,
    bootstrap_interval,
    equivalence_p_value,
    holm,
    interquartile_mean,
    paired_p_value,
    probability_of_improvement,
    share_interval,
    steps_to_threshold,
)
from flaxformer_lab.tasks import PrimaryMetric

SLACK = 0.03  # of a bound: what fresh test examples may add to a score by luck, and what the theorem leaves out
MARGIN = 0.02  # of a metric's range: a difference that is surely smaller counts as none
SAME = 1e-6  # curves that differ by less than this come from the same function


@dataclass(frozen=True)
class Score:
    """What one variant reached on one task, at the learning rate that was best on validation. One value per seed.

    examples: what each test example adds to the mean, where all seeds are tested on the same ones; beside_examples: to
    the metrics beside it, by name. succeeded: the seeds that are finite and reach the task's threshold, where it has
    one; share: how many do; of_successes: their mean.
    curves: on validation, at these steps.
    """

    task: str
    variant: str
    metric: PrimaryMetric
    learning_rate: float
    seeds: tuple[int, ...]
    values: Float[np.ndarray, " seeds"]
    examples: Examples
    beside_examples: dict[str, Examples]
    interval: Interval
    succeeded: Bool[np.ndarray, " seeds"]
    share: Interval
    of_successes: Interval | None
    interquartile_mean: float
    parameters: int
    forward_flops: int
    batch_size: int
    bound: dict[str, Any] | None
    steps: tuple[int, ...]
    curves: Float[np.ndarray, "seeds evaluations"]
    reached: tuple[int | None, ...] | None  # steps to the task's threshold
    measures: dict[str, Float[np.ndarray, " seeds"]]
    seconds: float
    provenance: dict[str, str]
    by_rate: dict[float, float]  # mean validation score of each learning rate that was tried; NaN where one diverged
    rate_edge: Edge | None  # where the chosen rate lies at an edge of these
    converged: bool | None  # whether the validation curves are flat at the end; None where nothing tells

    @property
    def training_flops(self) -> Float[np.ndarray, " evaluations"]:
        """FLOPs of a seed until each evaluation: the backward pass takes twice the forward's (Kaplan et al. 2020)."""
        return 3.0 * self.forward_flops * self.batch_size * np.array(self.steps, np.float64)

    def at_flops(self, flops: float) -> Float[np.ndarray, " seeds"] | None:
        """Each seed's validation score after so many FLOPs, on lines between evaluations; None before the first one."""
        known = self.training_flops
        if flops < known[0] * (1 - 1e-9):
            return None
        return np.array([np.interp(flops, known, curve) for curve in self.curves])

    @property
    def bound_held(self) -> bool | None:
        """Whether the scores agree with theory's bound: not all of their interval is better than it.

        None where there is no bound, or one that no score can break, or a run that is not finite.
        """
        if self.bound is None or self.bound["metric"] != self.metric.name or not np.isfinite(self.interval.mean):
            return None
        better = self.metric.higher_is_better
        best = self.metric.limits[1 if better else 0]
        if best is not None and (1 if better else -1) * (self.bound["value"] - best) >= -SLACK:
            return None
        worst = (
            self.interval.mean if np.isnan(self.interval.low) else (self.interval.low if better else self.interval.high)
        )
        return bool((1 if better else -1) * (worst - self.bound["value"]) <= SLACK)


@dataclass(frozen=True)
class Difference:
    """A variant less the baseline, paired by seed; positive where the variant is better.

    is_same: the variant trains to the baseline's very function, so there is nothing to compare. margin: the largest
    difference that counts as none; equivalence_p: that the difference is not within it, corrected like `corrected_p`.
    at_equal_flops: the difference on validation where the one that takes fewer FLOPs ends; None where the other one had
    not been evaluated by then.
    """

    task: str
    variant: str
    baseline: str
    values: Float[np.ndarray, " seeds"]
    interval: Interval
    p_value: float
    corrected_p: float  # for the number of variants that the task compares
    probability_of_improvement: Interval
    is_same: bool
    margin: float | None
    equivalence_p: float
    at_equal_flops: Interval | None

    @property
    def direction(self) -> str:
        """Better or worse; level where chance is a likely cause, after correction for the number of comparisons."""
        if len(self.values) < FEWEST_SEEDS or not self.corrected_p < SIGNIFICANT:
            return "level"
        return "better" if self.interval.mean > 0 else "worse"

    @property
    def is_equivalent(self) -> bool:
        """Whether the difference is within the margin, and not only unclear."""
        return self.is_same or (len(self.values) >= FEWEST_SEEDS and self.equivalence_p < SIGNIFICANT)


@dataclass(frozen=True)
class Summary:
    """An ablation's scores and differences, as far as it has come."""

    grid: Grid
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    failures: tuple[tuple[Cell, str], ...]
    missing: tuple[Cell, ...]

    @functools.cached_property
    def finished(self) -> tuple[Score, ...]:
        """The scores of cells that have nothing left to train; others wait for more learning rates."""
        left = {(cell.task, cell.variant) for cell in (*self.missing, *(cell for cell, _ in self.failures))}
        return tuple(each for each in self.scores if (each.task, each.variant) not in left)

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
    examples = _example_influence(result, rate)
    beside = ((name, _example_influence(result, rate, name)) for name in metric.beside)
    succeeded = succeeds(values, metric, threshold)
    return Score(
        task=cell.task,
        variant=cell.variant,
        metric=metric,
        learning_rate=rate,
        seeds=tuple(each["seed"] for each in chosen),
        values=values,
        examples=examples,
        beside_examples={name: each for name, each in beside if each is not None},
        interval=bootstrap_interval(values, examples=examples, limits=metric.limits),
        succeeded=succeeded,
        share=share_interval(float(succeeded.sum()), len(values)),
        of_successes=bootstrap_interval(values[succeeded], examples=examples, limits=metric.limits)
        if succeeded.any()
        else None,
        interquartile_mean=interquartile_mean(values),
        parameters=result["parameters"],
        forward_flops=result["forward_flops"],
        batch_size=cell.config.training.batch_size,
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
        provenance=result.get("provenance", {}),
        by_rate=mean_scores(result, metric),
        rate_edge=edge_of(result, metric, config.score_tolerance),
        converged=is_converged(steps, curves, higher_is_better=better, **tolerances),
    )


def succeeds(
    values: Float[np.ndarray, " seeds"], metric: PrimaryMetric, threshold: float | None
) -> Bool[np.ndarray, " seeds"]:
    """Whether a seed is finite, and reaches the threshold where there is one."""
    if threshold is None:
        return np.isfinite(values)
    return np.isfinite(values) & (values >= threshold if metric.higher_is_better else values <= threshold)


def intervals_beside(score: Score) -> list[Interval]:
    """The test values of the metrics beside the primary one; NaN where not stored."""
    names, unknown = score.metric.beside, np.full(1, np.nan)
    return [
        bootstrap_interval(score.measures.get(name, unknown), examples=score.beside_examples.get(name))
        for name in names
    ]


def at_equal_flops(scores: Sequence[Score], threshold: float | None) -> list[Score | None]:
    """Scores of one task after as many FLOPs as the one that took fewest, on validation; None before an evaluation."""
    flops = min(float(each.training_flops[-1]) for each in scores)
    found = [each.at_flops(flops) for each in scores]
    return [
        None
        if values is None
        else dataclasses.replace(
            each, values=values, examples=None, succeeded=succeeds(values, each.metric, threshold), converged=None
        )
        for each, values in zip(scores, found, strict=True)
    ]


def _example_influence(result: Result, rate: float, metric: str | None = None) -> Examples:
    """What each test example adds to the mean score, from the sums over seeds; None where each seed has its own.

    metric: one beside the primary metric.

    A score is a quotient, sum of totals / sum of weights; an example moves it by (total - score weight) / mean weight.
    """
    known = [each for each in result.get("test_examples", ()) if each.get("metric") == metric]
    stored = next((each for each in known if each["learning_rate"] == rate), None)
    if stored is None:
        return None
    totals, weights = (np.array([from_json(each) for each in stored[name]]) for name in ("totals", "weights"))
    score = totals.sum() / weights.sum()
    return (totals - score * weights) / weights.mean()


def difference_limits(limits: Limits) -> Limits:
    """The limits of a difference of two values within these."""
    low, high = limits
    return (None, None) if low is None or high is None else (low - high, high - low)


def measure_limits(name: str, metric: PrimaryMetric) -> Limits:
    """Between which a measure lies: shares between 0 and 1; errors, shares divided by an area, and costs above 0.

    metric: of the task, whose limits are those of the score in int8.
    """
    if name == "int8_score":
        return metric.limits
    has_no_highest = name == "mae" or name.endswith(("_error", "_bytes", "_latency")) or name.startswith("object_")
    return (0, None) if has_no_highest else (0, 1)


def difference_of_examples(ours: Examples, theirs: Examples) -> Examples:
    """What each test example adds to a difference; None where either is not known. Two test sets count apart."""
    if ours is None or theirs is None or len(ours) != len(theirs):
        return joined_examples([(1.0, ours), (-1.0, theirs)])
    return ours - theirs


def joined_examples(parts: Sequence[tuple[float, Examples]]) -> Examples:
    """What each example of several test sets adds to a weighted sum of scores; None where one is not known."""
    if any(examples is None for _, examples in parts):
        return None
    total = sum(len(examples) for _, examples in parts)
    return np.concatenate([examples * (weight * total / len(examples)) for weight, examples in parts])


def metric_range(metric: PrimaryMetric) -> float | None:
    """From the lowest value (or 0 where there is no limit) to the highest; None where there is no highest above it."""
    low, high = metric.limits
    return high - (low or 0.0) if high is not None and high > (low or 0.0) else None


def _differences(scores: list[Score], baseline: str) -> list[Difference]:
    """Every variant of a task against its baseline, corrected for how many there are.

    A variant that is the baseline's function here is compared with nothing, and is not counted.
    """
    base = next((each for each in scores if each.variant == baseline), None)
    others = [each for each in scores if each.variant != baseline]
    if base is None or not others:
        return []
    sign, size = 1 if base.metric.higher_is_better else -1, metric_range(base.metric)
    margin = None if size is None else MARGIN * size
    same = [_is_same(each, base) for each in others]
    paired = [sign * (each.values - base.values) for each in others]
    examples = [difference_of_examples(each.examples, base.examples) for each in others]
    examples = [None if each is None else sign * each for each in examples]
    known = zip(paired, examples, same, strict=True)
    p_values = [np.nan if is_same else paired_p_value(values, examples=moved) for values, moved, is_same in known]
    known = zip(paired, examples, same, strict=True)
    equivalence = [
        np.nan if is_same or margin is None else equivalence_p_value(values, margin, examples=moved)
        for values, moved, is_same in known
    ]
    rows = zip(others, paired, examples, same, p_values, holm(p_values), holm(equivalence), strict=True)
    return [
        Difference(
            task=each.task,
            variant=each.variant,
            baseline=baseline,
            values=values,
            interval=bootstrap_interval(values, examples=moved, limits=difference_limits(base.metric.limits)),
            p_value=p_value,
            corrected_p=float(corrected),
            probability_of_improvement=probability_of_improvement(values),
            is_same=is_same,
            margin=margin,
            equivalence_p=float(equivalent),
            at_equal_flops=_difference_at_equal_flops(each, base),
        )
        for each, values, moved, is_same, p_value, corrected, equivalent in rows
    ]


def _difference_at_equal_flops(score: Score, base: Score) -> Interval | None:
    """Less the baseline, positive where the variant is better."""
    ours, theirs = at_equal_flops([score, base], None)
    if ours is None or theirs is None:
        return None
    sign = 1 if base.metric.higher_is_better else -1
    return bootstrap_interval(sign * (ours.values - theirs.values), limits=difference_limits(base.metric.limits))


def _is_same(score: Score, base: Score) -> bool:
    """Whether two variants have trained to the same function, as where one token leaves nothing to attend to."""
    return (
        (score.parameters, score.learning_rate, score.seeds) == (base.parameters, base.learning_rate, base.seeds)
        and score.curves.shape == base.curves.shape
        and bool(np.all(np.abs(score.curves - base.curves) <= SAME))
        and bool(np.all(np.abs(score.values - base.values) <= SAME))
    )
