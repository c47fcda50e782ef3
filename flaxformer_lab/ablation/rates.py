"""The learning rate of each cell: the best on validation, from a grid that grows until that rate lies inside it.

A rate inside has been tried against a lower and a higher one. Where the best is the highest (or the lowest) so far, an
extension trains as many rates again beyond it, in the grid's own geometric steps. It is a cell of its own, with its own
key, so it is stored, resumed and shared as all cells are. A rate at which a seed diverges counts as the worst, so it
bounds the grid above. Where a few seeds find the rate (`search_seeds`), the last extension trains the others at it.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from flaxformer_lab.ablation.grid import AblationConfig, Cell
from flaxformer_lab.ablation.population import Replica
from flaxformer_lab.ablation.store import Result, Store, from_json
from flaxformer_lab.tasks import PrimaryMetric

Edge = Literal["lowest", "highest"]


def mean_scores(result: Result, metric: PrimaryMetric) -> dict[float, float]:
    """The metric on validation at the end, by learning rate; NaN where a seed diverged.

    A mean over the seeds that all rates have: those that only the chosen one was trained with did not search.
    """
    scores: dict[float, dict[int, float]] = collections.defaultdict(dict)
    for each in result["replicas"]:
        scores[each["learning_rate"]][each["seed"]] = from_json(each["validation"][metric.name][-1])
    common = sorted(set.intersection(*(set(by_seed) for by_seed in scores.values())))
    return {rate: float(np.mean([by_seed[seed] for seed in common])) for rate, by_seed in sorted(scores.items())}


def best_learning_rate(result: Result, metric: PrimaryMetric, tolerance: float = 0.0) -> float:
    """The learning rate whose seeds have the best mean of the metric on validation at the end.

    One that diverged counts as the worst; of equals it is the smallest. A rate at an edge gives way to the one beside
    it inside the grid, where that is worse by no more than `tolerance`: the curve is flat there.
    """
    rates, heights = _heights(result, metric)
    best = int(np.argmax(heights))
    inside = min(max(best, 1), len(rates) - 2)
    if len(rates) > 2 and np.isfinite(heights[best]) and heights[best] - heights[inside] <= tolerance:
        best = inside
    return rates[best]


def edge_of(result: Result, metric: PrimaryMetric, tolerance: float = 0.0) -> Edge | None:
    """Which edge of the rates that were tried the best one lies at; None inside, or where there was only one to try."""
    rates, _ = _heights(result, metric)
    best = best_learning_rate(result, metric, tolerance)
    if len(rates) == 1 or best not in (rates[0], rates[-1]):
        return None
    return "highest" if best == rates[-1] else "lowest"


def _heights(result: Result, metric: PrimaryMetric) -> tuple[list[float], np.ndarray]:
    """The rates, and how good each is: the more the better, -inf where a seed diverged."""
    means = mean_scores(result, metric)
    heights = np.array(list(means.values())) * (1 if metric.higher_is_better else -1)
    return list(means), np.where(np.isfinite(heights), heights, -np.inf)


# --------------------------------------------------------------------------------------------------- extensions


def progress(cell: Cell, store: Store, config: AblationConfig) -> tuple[Result | None, Cell | None]:
    """What a cell's grid has found so far (None before anything has), and what is to be trained next (None at the end).

    The result is that of the cell and of its extensions as if they were one.
    """
    found = list(_search(cell, store, config))
    return found[-1][2:] if found else (None, cell)


def finished_parts(cell: Cell, store: Store, config: AblationConfig) -> list[tuple[Cell, Result]]:
    """The cell and its extensions with their results, as far as they are finished."""
    return [(part, result) for part, result, _, _ in _search(cell, store, config)]


def _search(cell: Cell, store: Store, config: AblationConfig) -> Iterator[tuple[Cell, Result, Result, Cell | None]]:
    """Each finished part with its result, all results so far as one, and the part that follows."""
    part, whole = cell, None
    while part is not None and (result := store.result(part)) is not None:
        whole = result if whole is None else joined([whole, result])
        count = part.extension + 1
        following = extension(cell, whole, config, count) or other_seeds(cell, whole, config, count)
        yield part, result, whole, following
        part = following


def extension(cell: Cell, whole: Result, config: AblationConfig, count: int) -> Cell | None:
    """The cell's extension number `count`; None where the best rate lies inside, or the limit is reached."""
    edge = edge_of(whole, cell.primary_metric, config.score_tolerance)
    if edge is None or count > config.max_extensions:
        return None
    first = sorted({replica.learning_rate for replica in cell.replicas})
    step = (first[-1] / first[0]) ** (1 / (len(first) - 1))
    tried = mean_scores(whole, cell.primary_metric)
    start, direction = (max(tried), step) if edge == "highest" else (min(tried), 1 / step)
    rates = sorted(float(f"{start * direction**number:.3g}") for number in range(1, len(first) + 1))
    seeds = dict.fromkeys(replica.seed for replica in cell.replicas)
    replicas = tuple(Replica(seed, rate) for rate in rates for seed in seeds)
    return dataclasses.replace(cell, replicas=replicas, extension=count, base_key=cell.key)


def other_seeds(cell: Cell, whole: Result, config: AblationConfig, count: int) -> Cell | None:
    """The cell's extension number `count`, which trains the other seeds at the best rate; None at the end."""
    rate = best_learning_rate(whole, cell.primary_metric, config.score_tolerance)
    trained = {each["seed"] for each in whole["replicas"] if each["learning_rate"] == rate}
    replicas = tuple(Replica(seed, rate) for seed in config.seeds_of(cell.task) if seed not in trained)
    return dataclasses.replace(cell, replicas=replicas, extension=count, base_key=cell.key) if replicas else None


def joined(results: Sequence[Result]) -> Result:
    """The results of a cell's parts as one."""
    replicas = [each for one in results for each in one["replicas"]]
    examples = _joined_examples([each for one in results for each in one.get("test_examples", ())])
    seconds = sum(result["seconds"] for result in results)
    return results[0] | {"replicas": replicas, "test_examples": examples, "seconds": round(seconds, 2)}


def _joined_examples(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums over seeds by test example, one entry a metric and rate; none where seeds weigh other examples."""
    alike: dict[tuple[str | None, float], list[dict[str, Any]]] = collections.defaultdict(list)
    for part in parts:
        alike[part.get("metric"), part["learning_rate"]].append(part)
    plus = lambda *values: None if None in values else sum(values)  # noqa: E731
    return [
        same[0] | {name: list(map(plus, *(part[name] for part in same))) for name in ("totals", "weights")}
        for same in alike.values()
        if len({len(part["weights"]) for part in same}) == 1
    ]
