"""Pareto fronts of families of models: what score each allows at equal cost.

A family's front are the members that do better, on validation, than all cheaper ones. Between two of them a score lies
on the line in the logarithm of the cost, and beyond the dearest it stays, since the dearest still fits. Two fronts are
compared over all costs that both families have: the mean over the logarithm of the cost is a weighted mean of members'
scores, so that it has their seeds and test examples. Where all of one family is cheaper than the other's cheapest, they
are compared over the other's costs, at which the cheaper family stays at its best.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from flaxformer_lab.ablation.claim_config import Cost
from flaxformer_lab.report.summary import Score

POINTS = 1000  # of the range of costs, at which fronts are read
Values = Float[np.ndarray, " members"]


def cost_of(score: Score, cost: Cost) -> float | None:
    """What a variant costs; None where it was not measured. A latency is the median over seeds."""
    values = np.array([score.forward_flops]) if cost == "forward_flops" else score.measures.get(cost)
    return None if values is None or not np.all(np.isfinite(values)) else float(np.median(values))


def noise_of(score: Score, cost: Cost) -> float:
    """How many times the highest of a variant's measured costs is the lowest: its seeds cost the same."""
    values = score.measures.get(cost, np.ones(1))
    return float(values.max() / values.min())


def on_front(costs: Values, scores: Values) -> Float[np.ndarray, " front"]:
    """The places of the members that are better than all cheaper ones, the cheapest first; more is better."""
    order = sorted(range(len(costs)), key=lambda k: (costs[k], -scores[k]))
    best, kept = -np.inf, []
    for place in order:
        if scores[place] > best:
            best = scores[place]
            kept.append(place)
    return np.array(kept)


def shared_costs(*families: Values) -> tuple[float, float] | None:
    """The cheapest and the dearest cost that all families have, or that the dearer one has where they share none.

    None where there is no range of them.
    """
    low, high = max(costs.min() for costs in families), min(costs.max() for costs in families)
    high = high if low < high else max(costs.max() for costs in families)
    return (float(low), float(high)) if low < high else None


def front_weights(costs: Values, scores: Values, between: tuple[float, float]) -> Values:
    """How much each member counts in the mean of the front between two costs. Sums to 1."""
    places = on_front(costs, scores)
    at = np.linspace(*np.log(between), POINTS)
    weights = np.zeros(len(costs))
    known = np.log(costs[places])
    weights[places] = [np.interp(at, known, each).mean() for each in np.eye(len(places))]
    return weights


def validation_scores(scores: Sequence[Score]) -> Values:
    """The mean over seeds at the end of training; the more the better."""
    return np.array([each.curves[:, -1].mean() * (1 if each.metric.higher_is_better else -1) for each in scores])
