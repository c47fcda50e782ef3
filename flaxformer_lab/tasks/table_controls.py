"""What a model of a table is held against: linear maps and gradient-boosted trees, of scikit-learn and of LightGBM.

They are given what the model is given: numbers that are filled and scaled, and the levels of categories. Sizes are
chosen on validation as rates are.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.registry import register
from flaxformer_lab.tasks.controls import Fit, whole
from flaxformer_lab.tasks.tables import CATEGORIES, COLUMNS, Tabular

TABLES = ("tabular_classification", "tabular_regression", "click")
LEAVES = (15, 63)  # of a tree
MOST_TREES = 200
MOST_BINS = 255  # of a column, and so levels of a category, in scikit-learn's trees
LINEAR_STEPS = 200
ABSENT = -1e4  # the logit of a class that training lacks

Rows = Float[np.ndarray, "rows features"]


def _parts(inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and levels of prepared inputs."""
    if not isinstance(inputs, dict):
        return inputs, np.zeros((len(inputs), 0), np.int32)
    categories = inputs[CATEGORIES]
    return inputs.get(COLUMNS, np.zeros((len(categories), 0), np.float32)), categories


def _logits(
    scores: Shaped[np.ndarray, "rows ..."], learned: Int[np.ndarray, " learned"], classes: int
) -> Float[np.ndarray, "rows {classes}"]:
    """A column for each class, also for those that training lacks. Of two that are learned there is one score."""
    scores = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
    logits = np.full((len(scores), classes), ABSENT)
    logits[:, learned] = scores
    return logits


# ------------------------------------------------------------------------------------------------------ linear


@register("control", "linear", fits=TABLES, rates=(0.01, 1.0, 100.0), drawn=False)
def linear(task: Tabular, seed: int, rate: float) -> Fit:
    """A linear map of numbers and of a column for each level: logistic or ridge regression, of penalty 1 / rate."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    del seed
    levels, train = task.levels, whole(task, "train")

    def design(inputs: Any) -> Rows:
        numbers, codes = _parts(inputs)
        each = (codes[:, [place]] == np.arange(1, size)[None] for place, size in enumerate(levels))
        return np.concatenate([numbers, *each], axis=1, dtype=np.float32)

    if task.is_regression:
        model = Ridge(alpha=1 / rate).fit(design(train["inputs"]).astype(np.float64), train["targets"])
        return Fit(lambda inputs: model.predict(design(inputs))[:, None].astype(np.float32), model.coef_.size + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # columns in their own units
        model = LogisticRegression(C=rate, max_iter=LINEAR_STEPS).fit(design(train["inputs"]), train["targets"])
    return Fit(
        lambda inputs: _outputs(task, model, model.decision_function(design(inputs))),
        model.coef_.size + model.intercept_.size,
    )


# ------------------------------------------------------------------------------------------------------- trees


@register("control", "trees", fits=TABLES, rates=(0.03, 0.1, 0.3), drawn=False)
def trees(task: Tabular, seed: int, rate: float) -> Fit:
    """Gradient-boosted trees on histograms (Ke et al. 2017, in scikit-learn), of shrinkage `rate`.

    How many trees there are and how many leaves they have is chosen on validation. Categories of up to 254 levels are
    split by sets of levels; of more, by the order of their frequency.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    del seed
    train, validation = whole(task, "train"), whole(task, "validation")
    levels = task.levels
    numbers = _parts(train["inputs"])[0].shape[1]
    is_category = [False] * numbers + [size < MOST_BINS for size in levels]
    kind = HistGradientBoostingRegressor if task.is_regression else HistGradientBoostingClassifier
    options = {"learning_rate": rate, "max_iter": MOST_TREES, "early_stopping": False, "random_state": 0}
    best: tuple[float, Any, Callable[[np.ndarray], np.ndarray], int] | None = None
    for leaves in LEAVES:
        model = kind(max_leaf_nodes=leaves, categorical_features=is_category, **options)
        model.fit(_joined(train["inputs"]), train["targets"])
        stages = model.staged_predict if task.is_regression else model.staged_decision_function
        scores = [_loss(task, model, out, validation["targets"]) for out in stages(_joined(validation["inputs"]))]
        count = int(np.argmin(scores)) + 1
        if best is None or scores[count - 1] < best[0]:
            predict = lambda x, stages=stages, count=count: _stage(stages(x), count)  # noqa: E731
            best = scores[count - 1], model, predict, count * leaves
    _, model, predict, size = best
    return Fit(lambda inputs: _outputs(task, model, predict(_joined(inputs))), size)


def _joined(inputs: Any) -> Rows:
    return np.concatenate(_parts(inputs), axis=1, dtype=np.float32)


def _stage(stages: Iterator[np.ndarray], count: int) -> np.ndarray:
    return next(itertools.islice(stages, count - 1, None))


def _outputs(task: Tabular, model: Any, raw: np.ndarray) -> np.ndarray:
    """Outputs as a network's."""
    logits = raw.reshape(-1, 1) if task.is_regression else _logits(raw, model.classes_, task.metadata["num_classes"])
    return logits.astype(np.float32)


def _loss(task: Tabular, model: Any, raw: np.ndarray, targets: np.ndarray) -> float:
    """The mean squared error, or the cross-entropy."""
    if task.is_regression:
        return float(np.mean((raw - targets) ** 2))
    logits = _logits(raw, model.classes_, task.metadata["num_classes"])
    chosen = logits[np.arange(len(targets)), targets]
    return float(np.mean(np.logaddexp.reduce(logits, axis=1) - chosen))


@register("control", "lightgbm", fits=TABLES, rates=(0.03, 0.1, 0.3), drawn=True)
def lightgbm(task: Tabular, seed: int, rate: float) -> Fit:
    """Gradient-boosted trees of LightGBM (Ke et al. 2017), which is not installed with the lab."""
    try:
        import lightgbm as library
    except ImportError as error:
        raise ConfigError(
            "control=lightgbm needs the package lightgbm: pip install -e '.[lightgbm]' in the lab's folder"
        ) from error
    train, validation = whole(task, "train"), whole(task, "validation")
    numbers = _parts(train["inputs"])[0].shape[1]
    inputs, targets = _joined(validation["inputs"]), validation["targets"]
    if not task.is_regression:  # it refuses to evaluate a class that training has no row of
        known = np.isin(targets, train["targets"])
        inputs, targets = inputs[known], targets[known]
    kind = library.LGBMRegressor if task.is_regression else library.LGBMClassifier
    found = []
    for leaves in LEAVES:
        model = kind(n_estimators=MOST_TREES, learning_rate=rate, num_leaves=leaves, random_state=seed, verbose=-1)
        model.fit(
            _joined(train["inputs"]),
            train["targets"],
            eval_set=[(inputs, targets)],
            categorical_feature=list(range(numbers, numbers + len(task.levels))),
            callbacks=[library.early_stopping(MOST_TREES, verbose=False)],
        )
        found.append((next(iter(next(iter(model.best_score_.values())).values())), leaves, model))
    _, leaves, model = min(found, key=lambda each: each[0])
    predict = lambda inputs: model.predict(_joined(inputs), raw_score=True)  # noqa: E731
    return Fit(lambda inputs: _outputs(task, model, predict(inputs)), leaves * (model.best_iteration_ or MOST_TREES))
