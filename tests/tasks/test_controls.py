"""Controls: what is fitted without gradients, held against scikit-learn; and as rows of an ablation."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, r2_score, roc_auc_score

from flaxformer_lab import registry
from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.tasks import controls, table_controls
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.tasks.tables import TabularClassification, TabularRegression

ROWS = {"train": 160, "validation": 60, "test": 60}
LEVELS = 3
SCHEMA = {
    "columns": [
        {"name": name, "kind": kind, "decimal": ".", "day_first": False, "parts": []}
        for name, kind in (("a", "number"), ("b", "number"), ("c", "category"))
    ],
    "categories": [{"name": "c", "levels": ["unknown", "x", "y"], "counts": [0, 90, 70]}],
    "others": [],
}


def table(seed, number):
    """Two numbers and a category, and a target that needs all of them."""
    random = np.random.default_rng(seed)
    columns, codes = random.normal(size=(number, 2)).astype(np.float32), random.integers(0, LEVELS, (number, 1))
    target = columns[:, 0] * np.where(codes[:, 0] == 1, 2.0, -1.0) + np.abs(columns[:, 1]) + codes[:, 0]
    return {
        "columns": columns,
        "categories": codes.astype(np.int32),
        "target": target.astype(np.float32),
        "label": (target > 1).astype(np.int64),
    }


SPLITS = {name: table(seed, number) for seed, (name, number) in enumerate(ROWS.items())}


class Fixed:
    """A table that is in memory."""

    def examples(self, split):
        arrays = SPLITS[split] if isinstance(split, str) else split
        read = lambda rows: {name: values[rows] for name, values in arrays.items()}  # noqa: E731
        take = lambda held, rows: {name: values[rows] for name, values in held.items()}  # noqa: E731
        return Examples(ROWS[split], 1, lambda: arrays, take, read)


class Classification(Fixed, TabularClassification):
    pass


class Regression(Fixed, TabularRegression):
    pass


def classification(**knobs):
    config = parse_config({"task": {"name": "tabular_classification", "metric": "auc", "scaling": "none", **knobs}})
    metadata = {"table": SCHEMA, "feature": "columns", "label": "label", "num_classes": 2}
    return Classification(config.task, metadata | {"mean": [0.0, 0.0], "spread": [1.0, 1.0]})


def regression(**knobs):
    config = parse_config({"task": {"name": "tabular_regression", "scaling": "none", **knobs}})
    metadata = {"table": SCHEMA, "feature": "columns", "target": "target", "target_mean": 1.0, "target_spread": 2.0}
    return Regression(config.task, metadata | {"mean": [0.0, 0.0], "spread": [1.0, 1.0]})


def design(split):
    codes = SPLITS[split]["categories"]
    return np.column_stack([SPLITS[split]["columns"], codes == 1, codes == 2]).astype(np.float64)


def test_linear_is_scikit_learns_logistic_regression_and_its_figures():
    task = classification()
    found = controls.evaluate(task, controls.lookup("linear", "tabular_classification")(task, 0, 0.5), "test")
    model = LogisticRegression(C=0.5, max_iter=1000).fit(design("train"), SPLITS["train"]["label"])
    shares = model.predict_proba(design("test"))
    assert found["loss"] == pytest.approx(log_loss(SPLITS["test"]["label"], shares), abs=1e-3)
    assert found["auc"] == pytest.approx(roc_auc_score(SPLITS["test"]["label"], shares[:, 1]), abs=1e-3)


def test_linear_is_scikit_learns_ridge_regression():
    task = regression()
    found = controls.evaluate(task, controls.lookup("linear", "tabular_regression")(task, 0, 0.5), "test")
    model = Ridge(alpha=2.0).fit(design("train"), (SPLITS["train"]["target"] - 1) / 2)
    targets = SPLITS["test"]["target"]
    assert found["r2"] == pytest.approx(r2_score(targets, 1 + 2 * model.predict(design("test"))), abs=1e-5)
    assert found["mae"] == pytest.approx(np.abs(1 + 2 * model.predict(design("test")) - targets).mean(), abs=1e-5)


@pytest.fixture
def few_trees(monkeypatch):
    monkeypatch.setattr(table_controls, "MOST_TREES", 20)
    monkeypatch.setattr(table_controls, "LEAVES", (4, 8))


@pytest.mark.parametrize("kind", [pytest.param(classification, marks=pytest.mark.slow), regression])
def test_trees_beat_a_linear_map_where_columns_interact(few_trees, kind):
    task = kind()
    metric, name = task.primary_metric.name, kind().metadata and f"tabular_{kind.__name__}"
    fits = (controls.lookup(each, name)(task, 0, 0.3) for each in ("trees", "linear"))
    tree, line = (controls.evaluate(task, fit, "test")[metric] for fit in fits)
    assert tree > line + 0.03


def test_lightgbm_is_named_where_it_is_not_installed_and_else_learns_what_trees_learn(few_trees):
    task = regression()
    fit = controls.lookup("lightgbm", "tabular_regression")
    if importlib.util.find_spec("lightgbm") is None:
        with pytest.raises(ConfigError, match=r"control=lightgbm needs the package lightgbm: pip install -e"):
            fit(task, 0, 0.3)
        return
    assert controls.evaluate(task, fit(task, 0, 0.3), "test")["r2"] > 0.8


MONOTONE = {
    "powers of ten": lambda x: x * np.float32([1e-3, 1e4]),
    "an exponential": lambda x: np.exp(x, dtype=np.float32),
}


@pytest.mark.parametrize("change", ["powers of ten", pytest.param("an exponential", marks=pytest.mark.slow)])
def test_trees_are_exactly_the_same_after_a_monotone_map_of_each_column(few_trees, monkeypatch, change):
    """On values that training has: a threshold between two of them may move on the way to values that it has not."""
    seen = {name: {**split, "columns": SPLITS["train"]["columns"][: ROWS[name]]} for name, split in SPLITS.items()}

    def predictions(mapped):
        splits = {name: {**split, "columns": mapped(split["columns"])} for name, split in seen.items()}
        monkeypatch.setitem(globals(), "SPLITS", splits)
        task = regression()
        fit = controls.lookup("trees", "tabular_regression")(task, 0, 0.3)
        return np.concatenate([fit.predict(controls.whole(task, name)["inputs"]) for name in splits])

    columns = seen["train"]["columns"]
    order = np.argsort(columns, axis=0)
    assert (np.diff(np.take_along_axis(MONOTONE[change](columns), order, axis=0), axis=0) > 0).all()
    np.testing.assert_array_equal(predictions(MONOTONE[change]), predictions(lambda x: x))


def test_a_category_of_more_levels_than_trees_take_is_split_by_its_order(few_trees, monkeypatch):
    levels = [f"level {number}" for number in range(10_000)]
    many = {name: {**split, "categories": split["categories"] * 4999} for name, split in SPLITS.items()}
    monkeypatch.setitem(globals(), "SPLITS", many)
    task = regression()
    schema = {**SCHEMA, "categories": [{"name": "c", "levels": levels, "counts": [1] * 10_000}]}
    task = Regression(task._config, {**task.metadata, "table": schema})
    fit = controls.lookup("trees", "tabular_regression")(task, 0, 0.3)
    assert controls.evaluate(task, fit, "test")["r2"] > 0.5


def test_a_control_that_is_none_or_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"control=tree is no control: did you mean trees"):
        controls.lookup("tree", "tabular_regression")
    with pytest.raises(ConfigError, match=r"control=trees does not fit task\.name=delay, but tabular_classification"):
        controls.lookup("trees", "delay")


def test_logits_of_two_classes_have_the_scores_as_their_difference():
    found = table_controls._logits(np.array([0.5, -2.0]), np.array([0, 1]), 2)
    np.testing.assert_array_equal(found[:, 1] - found[:, 0], [0.5, -2.0])
    assert "trees" in registry.names("control") and jnp.asarray(found).shape == (2, 2)


@pytest.mark.parametrize("learned", [(0, 2), (0, 2, 3)])
@pytest.mark.parametrize("control", ["linear", "trees", "lightgbm"])
def test_a_class_that_training_lacks_has_an_output_and_is_never_the_best(few_trees, monkeypatch, control, learned):
    """Classes keep their numbers: of 0 and 2 the scores are in the columns 0 and 2."""
    if control == "lightgbm":
        pytest.importorskip("lightgbm", reason="the extra lightgbm is not installed")
    place = lambda split: np.digitize(split["columns"][:, 0], [-0.4, 0.4][: len(learned) - 1])  # noqa: E731
    splits = {name: {**split, "label": np.take(learned, place(split))} for name, split in SPLITS.items()}
    splits["validation"]["label"][:3] = 1
    monkeypatch.setitem(globals(), "SPLITS", splits)
    task = classification(metric="accuracy")
    task.metadata["num_classes"] = 4
    fit = controls.lookup(control, "tabular_classification")(task, 0, 0.3)
    outputs = fit.predict(controls.whole(task, "validation")["inputs"])
    assert outputs.shape == (ROWS["validation"], 4) and set(outputs.argmax(axis=1)) <= set(learned)
    right = outputs.argmax(axis=1) == splits["validation"]["label"]
    assert right[3:].mean() > 0.7 and not right[:3].any()
