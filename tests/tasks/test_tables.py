"""Tables of mixed columns: what the network gets, a number as the target, and a whole run on a CSV file."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from sklearn.preprocessing import QuantileTransformer

from flaxformer_lab.config import as_dict, parse_config
from flaxformer_lab.data.own.schema import Schema, table_of
from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.run import load_run, train
from flaxformer_lab.task_config import TabularClassificationConfig, TabularRegressionConfig
from flaxformer_lab.tasks import make_task, tables
from flaxformer_lab.training.folder import RunFolder

HOUSES = Path(__file__).parents[2] / "examples" / "houses.csv"
DATASET = f"csv:{HOUSES}?target=price&drop=energy"
MODEL = {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "position": "off"}
TREE = {
    "task": {"name": "tabular_regression", "dataset": DATASET, "missing": "indicator"},
    "model": MODEL,
    "optimizer": {"learning_rate": 0.01},
    "training": {"steps": 40, "batch_size": 32, "evaluate_every": 20, "checkpoint_every": 40, "steps_per_call": 20},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small model that learned prices from examples/houses.csv."""
    return train(parse_config(TREE), tmp_path_factory.mktemp("houses") / "run", quiet=True)


@pytest.fixture(scope="module")
def rows():
    """The file as texts, by line from 2 on."""
    with HOUSES.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines_of(split):
    return [int(line) - 2 for line in open_split(DATASET, split).load()["source_row"]]


# ------------------------------------------------------------------------------------------------- inputs


@pytest.mark.integration
def test_mixed_columns_are_tokens(run):
    task = run.task
    spec = task.input_spec(3)
    levels = {category["name"]: len(category["levels"]) for category in task.metadata["table"]["categories"]}
    assert [*levels] == ["district", "sold weekday", "sold month"]
    assert spec["categories"].shape == (3, 3) and spec["columns"].shape == (3, 7)  # six numbers and an indicator
    shapes = {path: leaf.shape for path, leaf in leaf_paths(run.params).items()}
    assert shapes["embedding.columns.directions"] == (7, 8) and shapes["embedding.categories.offsets"] == (3, 8)
    assert shapes["embedding.categories.vectors"] == (sum(levels.values()), 8) and shapes["head.kernel"] == (8, 1)


def embed(run, columns, codes):
    inputs = {"columns": jnp.asarray(columns, jnp.float32), "categories": jnp.asarray(codes, jnp.int32)}
    return np.asarray(run.model.embed(run.params, run.state.model_state, inputs))


def test_a_level_has_a_vector_and_unknown_has_none(run):
    """Against the formula of each token, with parameters of one column at a time."""
    random = np.random.default_rng(0)
    sizes = [len(category["levels"]) for category in run.task.metadata["table"]["categories"]]
    columns, codes = random.normal(size=(6, 7)), np.stack([random.integers(0, size, 6) for size in sizes], axis=1)
    codes[0] = 0
    numbers, categories = run.params["embedding"]["columns"], run.params["embedding"]["categories"]
    expected = columns[:, :, None] * np.asarray(numbers["directions"]) + np.asarray(numbers["offsets"])
    parts = np.split(np.asarray(categories["vectors"]), np.cumsum(sizes)[:-1])
    tokens = [
        np.asarray(categories["offsets"])[place] + np.where(codes[:, place, None] == 0, 0, part[codes[:, place]])
        for place, part in enumerate(parts)
    ]
    found = embed(run, columns, codes)
    np.testing.assert_allclose(found, np.concatenate([expected, np.stack(tokens, axis=1)], axis=1), atol=1e-5)


def test_every_column_can_change_the_prediction(run):
    raw = {name: list(values) for name, values in row_of(run).items()}
    before = run.predict(raw)
    changes = {
        "area": 200.0,
        "rooms": 9,
        "age": None,
        "distance": 9e3,
        "garden": "yes",
        "district": "hills",
        "sold": "2021-03-03",
    }
    for name, value in changes.items():
        assert abs(run.predict(raw | {name: [value]}) - before).max() > 1e-4, name


def row_of(run):
    del run
    return {
        "area": [90],
        "rooms": [3],
        "age": [20],
        "distance": [500],
        "garden": ["no"],
        "district": ["old town"],
        "sold": ["2022-01-01"],
    }


@pytest.mark.parametrize("scaling", ["none", "standard", "quantile"])
def test_scaling_is_fitted_to_the_training_rows(scaling):
    task = make_task(TabularRegressionConfig(dataset=DATASET, missing="mean", scaling=scaling))
    train, test = (open_split(DATASET, split).load()["columns"].astype(np.float64) for split in ("train", "test"))
    filled = np.where(np.isnan(test), np.nanmean(train, axis=0), test)
    if scaling == "standard":
        filled = (filled - np.nanmean(train, axis=0)) / np.nanstd(train, axis=0)
    if scaling == "quantile":
        reference = QuantileTransformer(n_quantiles=len(train), output_distribution="normal").fit(train)
        reference.quantiles_ = reference.quantiles_.astype(np.float32).astype(np.float64)  # it parts equal values
        filled = reference.transform(filled)
    examples = task.examples("test").load() | {"example_weight": np.ones(len(test), np.float32)}
    keys = jax.random.split(jax.random.key(0), len(test))
    found = jax.jit(lambda examples, keys: task.prepare(examples, keys, training=False))(examples, keys)
    np.testing.assert_allclose(found["inputs"]["columns"], filled, rtol=1e-4, atol=2e-3)
    assert len(json.dumps(task.metadata)) < 100_000 and json.loads(json.dumps(task.metadata)) == task.metadata


def test_a_missing_number_is_named_by_line_and_column(rows):
    line = next(place for place, row in enumerate(rows) if not row["age"] and place in lines_of("train")) + 2
    with pytest.raises(
        DataError, match=r"houses\.csv train: column age of line \d+ is missing; set task\.missing=mean"
    ) as error:
        make_task(TabularRegressionConfig(dataset=DATASET))
    assert rows[int(str(error.value).split("line ")[1].split()[0]) - 2]["age"] == "" and line


def test_a_table_of_categories_alone():
    dataset = f"csv:{HOUSES}?target=energy&drop=price,id,area,rooms,age,distance,garden&dates=sold"
    with_date = make_task(TabularClassificationConfig(dataset=dataset))
    assert with_date.input_spec(2)["columns"].shape == (2, 1)
    task = make_task(
        TabularClassificationConfig(dataset=dataset.replace("&dates=sold", "").replace("drop=", "drop=sold,"))
    )
    assert {name: spec.shape for name, spec in task.input_spec(2).items()} == {"categories": (2, 1)}
    inputs = task.inputs_of({"district": ["hills", None]})
    network = task.network(TransformerConfig(width=8, depth=1))
    outputs = jax.eval_shape(lambda: network.apply(*network.init(jax.random.key(0)), inputs)[0])
    assert outputs.shape == (2, 4) and inputs["categories"].tolist() == [[3], [0]]
    assert ["classes of energy", "4 (A, B, C, D)"] in task.facts()


def test_the_target_decides_the_task():
    with pytest.raises(ConfigError, match=r"energy is a class, no number; set task\.name=tabular_classification"):
        make_task(TabularRegressionConfig(dataset=f"csv:{HOUSES}?target=energy"))
    with pytest.raises(
        ConfigError, match=r"price is a number of many values, no class; set task\.name=tabular_regression"
    ):
        make_task(TabularClassificationConfig(dataset=f"csv:{HOUSES}?target=price"))
    with pytest.raises(ConfigError, match=r"task\.split_seed=1 with task\.dataset=csv:"):
        make_task(TabularRegressionConfig(dataset=DATASET, split_seed=1))
    with pytest.raises(ConfigError, match=r"lab_wine has no target of fixed shape, which tabular_regression needs"):
        make_task(TabularRegressionConfig(dataset="lab_wine"))


# -------------------------------------------------------------------------------------------- regression


def test_the_figures_of_a_number_are_those_of_raw_prices(run, rows):
    """Predictions for rows of the file give the figures of the evaluation, by scikit-learn."""
    chosen = [rows[line] for line in lines_of("test")]
    raw = {name: [row[name] for row in chosen] for name in rows[0]}
    prices = np.array(raw.pop("price"), np.float64)
    train_prices = np.array([float(rows[line]["price"]) for line in lines_of("train")])
    metadata = run.task.metadata
    assert (metadata["target_mean"], metadata["target_spread"]) == pytest.approx(
        (train_prices.mean(), train_prices.std())
    )
    outputs = np.asarray(run.predict(raw))
    np.testing.assert_allclose(run.run_with_cache(raw, names=("none",))[0], outputs, rtol=1e-5)
    expected = {
        "r2": sklearn.metrics.r2_score(prices, outputs),
        "rmse": sklearn.metrics.root_mean_squared_error(prices, outputs),
        "mae": sklearn.metrics.mean_absolute_error(prices, outputs),
        "loss": np.mean((prices - outputs) ** 2) / train_prices.var(),
    }
    assert run.evaluate("test") == pytest.approx(expected, rel=1e-4)
    assert expected["r2"] > 0.5  # it has learned something


def test_predictions_are_the_same_from_every_form(run, rows, tmp_path):
    chosen = [dict(rows[line]) for line in lines_of("validation")[:5]]
    for row in chosen:
        del row["price"]
    with (tmp_path / "new.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(chosen)
    as_lists = {name: [row[name] for row in chosen] for name in chosen[0]}
    expected = run.predict(as_lists)
    assert expected.shape == (5,)
    for raw in (chosen, tmp_path / "new.csv", str(tmp_path / "new.csv")):
        np.testing.assert_array_equal(run.predict(raw), expected)
    with pytest.raises(ConfigError, match=r"predict lacks columns area, age, .*; this model takes area, rooms"):
        run.predict([{"rooms": 3}])


@pytest.mark.slow
def test_an_exported_model_predicts_prices_too(run, tmp_path):
    exported = run.export(tmp_path / "prices.stablehlo", examples=8)
    raw = row_of(run)
    columns, categories = Schema.from_json(exported.description["metadata"]["table"]).encode(table_of(raw))
    found = exported.predict({"columns": columns, "categories": categories})
    np.testing.assert_allclose(found, run.predict(raw), rtol=1e-5)
    parity = exported.description["parity"]
    assert parity["metrics"] == pytest.approx(parity["metrics_of_run"], rel=1e-4) and parity["metrics"]["rmse"] > 1e3


def test_a_run_is_used_where_its_data_is_not(run, monkeypatch):
    expected = run.predict(row_of(run))
    monkeypatch.setattr(tables, "open_split", lambda *_: pytest.fail("the data was opened"))
    np.testing.assert_array_equal(load_run(run.workdir).predict(row_of(run)), expected)


# ------------------------------------------------------------------------------------- configs of version 0.1


def test_a_config_of_an_earlier_version_means_the_same():
    for value, scaling in ((True, "standard"), ("false", "none")):
        config = parse_config({"task": {"name": "tabular_classification", "standardised": value}})
        assert config.task.scaling == scaling and "standardised" not in as_dict(config)["task"]
    with pytest.raises(ConfigError, match=r"task\.standardised=False and task\.scaling=quantile are one knob"):
        parse_config({"task": {"name": "tabular_classification", "standardised": False, "scaling": "quantile"}})
    with pytest.raises(ConfigError, match=r"task\.standardised='x' must be true or false"):
        parse_config({"task": {"name": "tabular_classification", "standardised": "x"}})


def test_a_run_of_an_earlier_version_is_read(tmp_path):
    """config.json and metadata.json as version 0.1 wrote them: no schema, no names of features."""
    config = parse_config({"task": {"name": "tabular_classification", "dataset": "gone", "standardised": False}})
    folder = RunFolder(tmp_path / "run")
    folder.claim(config, {"num_classes": 2, "mean": [1.0, 2.0], "spread": [1.0, 4.0]})
    tree = as_dict(config)
    del tree["task"]["scaling"], tree["task"]["split_seed"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(tree | {"task": tree["task"] | {"standardised": False}}))
    config, metadata = folder.read()
    task = make_task(config.task, metadata)
    np.testing.assert_array_equal(task.inputs_of({"columns": [[2.0, 10.0]]}), [[2.0, 10.0]])
    standard = dataclasses.replace(config.task, scaling="standard")
    np.testing.assert_array_equal(make_task(standard, metadata).inputs_of([[2.0, 10.0]]), [[1.0, 2.0]])
