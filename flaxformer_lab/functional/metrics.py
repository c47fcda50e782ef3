"""Metrics as states: each batch gives a state, the states of all batches merge into one, and that computes the value.

An additive state is a sum over examples, so any split of the data over batches and devices adds up to the same value.
The others keep what each example contributes, because their value depends on all examples at once (AUC, NDCG).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@runtime_checkable
class Metric(Protocol):
    """The state of one metric: a pytree of arrays.

    additive: whether states add up, leaf by leaf; the leaves of other states have examples as their first axis.
    merge(states) -> one state, on the host. compute() -> the value, of a merged state, or several values by name.
    """

    additive: ClassVar[bool]

    @classmethod
    def merge(cls, states: Sequence["Metric"]) -> "Metric": ...

    def compute(self) -> "Value | dict[str, float]": ...


Metrics = dict[str, Any]  # a Metric by name
Leaf = Any  # [examples]: an array here or on the host, or its shape
Value = float | Float[np.ndarray, "2 examples"]  # two numbers of each example: `PerExample`


class Average(NamedTuple):
    """A weighted sum and the sum of the weights; the value is their quotient, NaN where nothing has a weight."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    additive = True

    @classmethod
    def merge(cls, states: Sequence["Average"]) -> "Average":
        # fsum adds exactly, so the order of the batches does not matter.
        return cls(*(math.fsum(float(leaf) for leaf in leaves) for leaves in zip(*states, strict=True)))

    def compute(self) -> float:
        return float(self.total / self.weight) if self.weight else math.nan


class MacroF1(NamedTuple):
    """Weights of true positives, of all predictions and of all targets, by class; classes without either do not count.

    The value is the mean over classes of 2 TP / (predicted + actual); NaN where no class counts, and where a target
    that has a weight is not one of the classes.
    """

    true_positives: Float[Array, " classes"]
    predicted: Float[Array, " classes"]
    actual: Float[Array, " classes"]

    additive = True

    @classmethod
    def of(
        cls, logits: Float[Array, "*batch classes"], targets: Int[Array, "*batch"], weights: Float[Array, "*batch"]
    ) -> "MacroF1":
        """The state of one batch."""
        classes = logits.shape[-1]
        axes = tuple(range(logits.ndim - 1))
        weights = jnp.where(counts_outside(targets, classes, weights), jnp.nan, weights)
        chosen, target = (jax.nn.one_hot(each, classes) for each in (logits.argmax(-1), targets))
        weights = weights[..., None]
        return cls(*((each * weights).sum(axes) for each in (chosen * target, chosen, target)))

    @classmethod
    def merge(cls, states: Sequence["MacroF1"]) -> "MacroF1":
        return cls(*(np.sum(np.asarray(leaves, np.float64), axis=0) for leaves in zip(*states, strict=True)))

    def compute(self) -> float:
        total = np.asarray(self.predicted + self.actual)
        counted = total != 0
        return (
            float(np.mean(2 * np.asarray(self.true_positives)[counted] / total[counted])) if counted.any() else math.nan
        )


class RootMean(NamedTuple):
    """As `Average`; the value is its square root."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    additive = True

    @classmethod
    def merge(cls, states: Sequence["RootMean"]) -> "RootMean":
        return cls(*Average.merge(states))

    def compute(self) -> float:
        return math.sqrt(Average(*self).compute())


class RSquared(NamedTuple):
    """R2 = 1 - sum (output - target)^2 / sum (target - mean)^2, with the mean of the evaluated targets.

    Where all targets are equal it is 0, or 1 where all outputs equal them, as in scikit-learn. The targets' mean should
    be near 0: their squares are summed in float32.
    """

    errors: Float[Array, ""]
    targets: Float[Array, ""]
    squares: Float[Array, ""]
    weight: Float[Array, ""]

    additive = True

    @classmethod
    def of(
        cls, outputs: Float[Array, " batch"], targets: Float[Array, " batch"], weights: Float[Array, " batch"]
    ) -> "RSquared":
        """The state of one batch."""
        each = (jnp.square(outputs - targets), targets, jnp.square(targets), jnp.ones_like(targets))
        return cls(*(jnp.sum(values * weights) for values in each))

    @classmethod
    def merge(cls, states: Sequence["RSquared"]) -> "RSquared":
        return cls(*(math.fsum(float(leaf) for leaf in leaves) for leaves in zip(*states, strict=True)))

    def compute(self) -> float:
        errors, targets, squares, weight = map(float, self)
        if not weight:
            return math.nan
        variation = squares - targets**2 / weight
        if variation <= 1e-5 * squares:  # no more than rounding
            return float(errors == 0)
        return 1 - errors / variation


class Gathered:
    """A state that keeps every example's leaves, and is merged by concatenation."""

    additive: ClassVar[bool] = False

    @classmethod
    def merge(cls, states: Sequence["Gathered"]) -> "Gathered":
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *states)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerExample(Gathered):
    """What each example adds to an `Average`, padding too, which has weight 0."""

    totals: Leaf
    weights: Leaf

    @classmethod
    def of(cls, average: Callable[[Any], Average], batch: Any) -> "PerExample":
        """The state of one batch, from the average of a batch: a pytree whose leaves begin with examples."""
        each = jax.vmap(lambda example: average(jax.tree.map(lambda leaf: leaf[None], example)))(batch)
        return cls(each.total, each.weight)

    def compute(self) -> Float[np.ndarray, "2 examples"]:
        return np.stack([np.asarray(each, np.float64) for each in (self.totals, self.weights)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AUC(Gathered):
    """Area under the ROC curve, exact: P(score of a positive > score of a negative), a tie counts half.

    NaN where one of the two kinds is missing, a score is NaN, or a label is neither 0 nor 1.
    """

    scores: Leaf
    labels: Leaf
    weights: Leaf

    def compute(self) -> float:
        scores, labels, weights = (np.asarray(each, np.float64) for each in (self.scores, self.labels, self.weights))
        if np.any((weights != 0) & (np.isnan(scores) | ~np.isin(labels, (0, 1)))):
            return math.nan
        _, rank = np.unique(scores, return_inverse=True)
        return _area_under_roc(rank, labels, weights)


def _area_under_roc(rank: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """From the ranks of the scores, equal ones for a tie."""
    positive, negative = (np.bincount(rank, weights * (labels == kind)) for kind in (1, 0))
    below = np.cumsum(negative) - negative
    pairs = positive.sum() * negative.sum()
    return float(positive @ (below + negative / 2) / pairs) if pairs else math.nan


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AUCError(Gathered):
    """The standard error of `AUC`, from `draws` samples of groups with replacement (Efron 1979), always the same ones.

    Examples of a group (a day, a user) belong together: drawn one by one they would seem more certain than they are.
    Where each example is a group, it is what more and more draws tend to (DeLong et al. 1988); a kind with one example
    has no spread to add. NaN where the AUC is.
    """

    scores: Leaf
    labels: Leaf
    weights: Leaf
    groups: Leaf
    draws: int = dataclasses.field(default=200, metadata={"static": True})

    def compute(self) -> float:
        if math.isnan(AUC(self.scores, self.labels, self.weights).compute()):
            return math.nan
        kept = np.asarray(self.weights) > 0
        scores, labels, weights, groups = (
            np.asarray(each)[kept] for each in (self.scores, self.labels, self.weights, self.groups)
        )
        _, rank = np.unique(scores, return_inverse=True)
        names, group = np.unique(groups, return_inverse=True)
        if len(names) == len(scores):
            return _delong_error(rank, labels)
        generator, values = np.random.Generator(np.random.Philox(key=0)), []
        for _ in range(self.draws):
            times = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
            values.append(_area_under_roc(rank, labels, weights * times[group]))
        return float(np.nanstd(values, ddof=1))


def _delong_error(rank: np.ndarray, labels: np.ndarray) -> float:
    """From how each positive is placed among the negatives, and each negative among the positives."""
    variance = 0.0
    for kind in (1, 0):
        other = np.bincount(rank, labels != kind)
        placed = (np.cumsum(other) - other / 2)[rank[labels == kind]] / other.sum()
        variance += np.var(placed, ddof=1) / len(placed) if len(placed) > 1 else 0.0
    return math.sqrt(variance)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Correlation(Gathered):
    """Pearson's correlation of predictions and targets, or Spearman's with `ranks`; examples of weight 0 are left out.

    NaN where one of the two does not vary, or is not finite.
    """

    predictions: Leaf
    targets: Leaf
    weights: Leaf
    ranks: bool = dataclasses.field(default=False, metadata={"static": True})

    def compute(self) -> float:
        kept = np.asarray(self.weights) > 0
        both = [np.asarray(each, np.float64)[kept] for each in (self.predictions, self.targets)]
        if not all(np.all(np.isfinite(each)) and np.ptp(each) for each in both if len(each)) or not kept.any():
            return math.nan
        return float(np.corrcoef(*map(_ranks, both) if self.ranks else both)[0, 1])


def _ranks(values: Float[np.ndarray, " values"]) -> Float[np.ndarray, " values"]:
    """The rank of each, from 1 on; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NDCG(Gathered):
    """Normalised discounted cumulative gain at `top`, averaged over groups (users) that have a relevant example.

    DCG = sum over the first `top` of relevance / log2(1 + rank), divided by that of the best order (Jarvelin and
    Kekalainen 2002). Equal scores share the mean gain of their ranks, as in scikit-learn. Examples of weight 0 are left
    out. NaN where a score is NaN.
    """

    groups: Leaf
    scores: Leaf
    relevance: Leaf
    weights: Leaf
    top: int = dataclasses.field(default=10, metadata={"static": True})

    def compute(self) -> float:
        kept = np.asarray(self.weights) > 0
        groups, scores, relevance = (np.asarray(each)[kept] for each in (self.groups, self.scores, self.relevance))
        if np.any(np.isnan(scores)):
            return math.nan
        values = []
        for group in np.unique(groups):
            of_group = groups == group
            gains = relevance[of_group].astype(np.float64)
            best = _discounted_gain(gains, gains, self.top)
            if best > 0:
                values.append(_discounted_gain(scores[of_group], gains, self.top) / best)
        return float(np.mean(values)) if values else math.nan


def _discounted_gain(scores: np.ndarray, gains: np.ndarray, top: int) -> float:
    """DCG of the order that the scores give."""
    discounts = 1 / np.log2(np.arange(len(scores)) + 2)
    discounts[top:] = 0
    _, tied, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    sums = np.cumsum(discounts)[ends - 1]
    shared = np.diff(sums, prepend=0) / counts
    return float(gains @ shared[tied])


def counts_outside(
    targets: Int[Array, "*batch"], classes: int, weights: Float[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """Whether a target has a weight and is not one of the classes, which count from 0."""
    return ((targets < 0) | (targets >= classes)) & (weights != 0)


def additive(metrics: Metrics) -> Metrics:
    """The metrics that are sums over examples; training keeps these alone for each update."""
    return {name: metric for name, metric in metrics.items() if metric.additive}


def reduce_over(metrics: Metrics, axis_name: str | None) -> Metrics:
    """The states of all devices of a mapped axis as one, on each of them."""
    if axis_name is None:
        return metrics

    def reduced(metric: Metric) -> Metric:
        if metric.additive:
            return jax.lax.psum(metric, axis_name)
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), metric)

    return {name: reduced(metric) for name, metric in metrics.items()}


def compute(batches: Sequence[Mapping[str, Metric]]) -> dict[str, Value]:
    """The value of each metric over all batches; a metric of several values gives each by its own name."""
    values: dict[str, Any] = {}
    for name, first in batches[0].items():
        value = type(first).merge([batch[name] for batch in batches]).compute()
        values |= value if isinstance(value, dict) else {name: value}
    return values


def compute_by_step(history: Metrics, count: int) -> dict[str, np.ndarray]:
    """The values of the first `count` steps, from states on the host whose leaves have steps as their first axis.

    An average is 0 where nothing had a weight.
    """

    def values(metric: Any) -> np.ndarray:
        if isinstance(metric, Average):
            return (metric.total / np.maximum(metric.weight, 1e-30))[:count]
        return np.array([jax.tree.map(lambda leaf, k=k: leaf[k], metric).compute() for k in range(count)])

    return {name: values(metric) for name, metric in history.items()}
