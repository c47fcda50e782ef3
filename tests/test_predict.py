"""Scores of new rows, from a file to a file; and tables on which little can be learned."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss, r2_score

from flaxformer_lab.config import parse_config
from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.schema import Schema, table_of
from flaxformer_lab.data.own.tables import read
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.predict import Scores, predict
from flaxformer_lab.predict import write as write_scores
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.tasks import make_task
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.state import initial_state

pytestmark = pytest.mark.integration

ROWS = 60


def write(path, columns, delimiter=","):
    """A CSV of columns by name."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def columns_of(rows, seed=0):
    random = np.random.default_rng(seed)
    size, colour = random.normal(size=rows).round(3), random.choice(["red", "blue"], rows)
    return {
        "size": size.tolist(),
        "always": ["x"] * rows,
        "colour": colour.tolist(),
        "kind": np.where(size > 0, "good", "bad").tolist(),
        "price": (10 * size + (colour == "red")).round(3).tolist(),
    }


def untrained(folder, task) -> Run:
    """A run as training would leave it before its first update."""
    model = {"width": 4, "depth": 0, "norm": {"kind": "off"}, "position": "off"}
    config = parse_config({"task": task, "model": model, "training": {"steps": 1, "batch_size": 4}})
    experiment, folder = make_experiment(config), RunFolder(folder)
    folder.claim(config, experiment.task.metadata)
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(1)), {"loss": 1.0})
    return load_run(folder.path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A classification and a regression."""
    root, found = tmp_path_factory.mktemp("predict"), {}
    path = write(root / "past.csv", columns_of(ROWS))
    for name, target, other in (("classification", "kind", "price"), ("regression", "price", "kind")):
        task = {"name": f"tabular_{name}", "dataset": f"csv:{path}?target={target}&drop={other}"}
        found[name] = untrained(root / name, task)
    return found


def test_each_row_has_the_probability_of_each_class_and_its_figures(runs, tmp_path):
    columns = columns_of(20, seed=1)
    columns["colour"][3] = "never seen"
    found = predict(runs["classification"], write(tmp_path / "new.csv", columns))
    logits = runs["classification"].predict({name: columns[name] for name in ("size", "colour")})
    shares = np.asarray(jax.nn.softmax(logits))
    assert list(found.columns) == ["predicted kind", "probability of bad", "probability of good"]
    np.testing.assert_allclose(found.columns["probability of good"], shares[:, 1], rtol=1e-6)
    assert found.columns["predicted kind"] == [("bad", "good")[number] for number in shares.argmax(axis=1)]
    assert found.lines.tolist() == list(range(2, 22))
    assert found.metrics["loss"] == pytest.approx(log_loss(columns["kind"], shares), rel=1e-5)


def test_the_command_writes_numbers_in_their_own_units(run_command, runs, tmp_path):
    columns = columns_of(12, seed=2)
    expected = np.asarray(runs["regression"].predict({name: columns[name] for name in ("size", "colour")}))
    without = {name: values for name, values in columns.items() if name != "price"}
    file, output = write(tmp_path / "new.csv", without), tmp_path / "deep" / "scores.csv"
    folder = runs["regression"].workdir
    code, out, _ = run_command("flaxformer_lab.predict", f"--workdir={folder}", f"--csv={file}", f"--output={output}")
    assert code == 0 and out == [f"written: {output}"]
    head, *rows = csv.reader(output.open())
    assert head == ["line", "predicted price"] and [row[0] for row in rows] == [str(line) for line in range(2, 14)]
    np.testing.assert_allclose(np.array([row[1] for row in rows], float), expected, rtol=1e-5)


def test_evaluate_takes_new_rows_that_have_the_target(run_command, runs, tmp_path):
    columns, folder = columns_of(12, seed=2), runs["regression"].workdir
    file = write(tmp_path / "new.csv", columns)
    code, out, _ = run_command("flaxformer_lab.evaluate", f"--workdir={folder}", f"--csv={file}")
    values = json.loads(out[-1])
    predicted = runs["regression"].predict({name: columns[name] for name in ("size", "colour")})
    assert code == 0 and values["r2"] == pytest.approx(r2_score(columns["price"], predicted), rel=1e-4)
    assert (folder / "predictions" / "new.csv").exists()
    del columns["price"]
    file = write(tmp_path / "other.csv", columns)
    code, _, err = run_command("flaxformer_lab.evaluate", f"--workdir={folder}", f"--csv={file}")
    assert code == 3 and "has no column price, the target, to evaluate on" in err[-1]


def test_a_figure_that_is_not_a_number_is_null(run_command, tmp_path):
    path, file = (write(tmp_path / f"{rows}.csv", columns_of(rows)) for rows in (ROWS, 1))
    dataset = f"csv:{path}?target=kind&drop=price"
    run = untrained(tmp_path / "run", {"name": "tabular_classification", "dataset": dataset, "metric": "auc"})
    code, out, _ = run_command("flaxformer_lab.evaluate", f"--workdir={run.workdir}", f"--csv={file}")
    refuse = lambda name: pytest.fail(f"{name} is no JSON")  # noqa: E731
    values = json.loads(out[-1], parse_constant=refuse)
    assert code == 0 and values["auc"] is None and values["loss"] > 0


def test_scores_are_written_with_all_digits_of_float32():
    values = np.random.default_rng(0).lognormal(0, 9, 1000).astype(np.float32)
    head, *rows = Scores(np.arange(1000), {"price": values.tolist()}, {}).as_csv().splitlines()
    np.testing.assert_array_equal(np.array([row.partition(",")[2] for row in rows], np.float32), values)
    assert head == "line,price"


def test_a_target_in_doubt_is_refused(tmp_path):
    columns = {"size": [f"{row}" for row in range(ROWS)], "y": [f"{row + 1}.{100 + row}" for row in range(ROWS)]}
    path = write(tmp_path / "past.csv", columns, ";")
    for options in ("", "&split=time:y"):
        with pytest.raises(DataError, match=r"line 2, column y: 1\.100 can be 1\.100 or 1100; add decimal="):
            read(parse_address(f"csv:{path}?target=y{options}"))


# By name: how the target is written, its prepared values, and options of the file.
TARGETS = {
    "whole numbers with a fraction": (lambda row: f"{row % 2}.0", lambda row: row % 2, ""),
    "thousands": (lambda row: f"{1 + row % 3},000", lambda row: row % 3, "&decimal=point"),
    "German thousands": (lambda row: f"{1 + row % 2}.00{row % 2}", lambda row: row % 2, "&decimal=comma"),
    "yes and no": (lambda row: ("No", "YES")[row % 2], lambda row: row % 2, ""),
    "a bar": (lambda row: "ab"[row % 2], lambda row: row % 2, "&delimiter=|"),
    "dates": (lambda row: f"{1 + row % 28}/3/2024", lambda row: 19783 + row % 28, "&dates=y"),
    "a decimal comma": (lambda row: f"{row},5", lambda row: row + 0.5, ""),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_run_reads_the_target_as_training_did(tmp_path, name):
    """Also where a file of few rows could be read in another way."""
    written, expected, options = TARGETS[name]
    columns = {"size": columns_of(ROWS)["size"], "y": [written(row) for row in range(ROWS)]}
    is_number = name in ("dates", "a decimal comma")
    delimiter = "|" if "delimiter" in options else ";"
    path = write(tmp_path / "past.csv", columns, delimiter)
    kind = "regression" if is_number else "classification"
    run = untrained(tmp_path / "run", {"name": f"tabular_{kind}", "dataset": f"csv:{path}?target=y{options}"})
    few = write(tmp_path / "few.csv", {name: values[1:4] for name, values in columns.items()}, delimiter)
    for file, rows in ((path, range(ROWS)), (few, range(1, 4))):
        assert np.isfinite(predict(run, file).metrics["loss"])
        targets = run.task.targets_in(table_of(file))
        if is_number:
            targets = targets * run.task.metadata["target_spread"] + run.task.metadata["target_mean"]
        np.testing.assert_allclose(targets, [expected(row) for row in rows], atol=1e-5)
    if name == "a decimal comma":
        new = {"size": [1.5, 2.5], "y": ["1.234", "12.345"]}
        targets = run.task.targets_in(table_of(new)) * run.task.metadata["target_spread"]
        np.testing.assert_allclose(targets + run.task.metadata["target_mean"], [1234, 12345], rtol=1e-6)


def test_the_file_that_was_read_is_not_written_over(runs, tmp_path):
    """Whatever leads to it: its name, a link, or the folder where scores go by default."""
    run = runs["classification"]
    file, link, scores = tmp_path / "new.csv", tmp_path / "link.csv", run.workdir / "predictions" / "old.csv"
    link.symlink_to(file)
    scores.parent.mkdir(exist_ok=True)
    for path, output in ((file, str(file)), (file, str(link)), (scores, None)):
        before = write(path, columns_of(3)).read_bytes()
        with pytest.raises(ConfigError, match=r"--output=.*\.csv is the file that was read; choose another --output"):
            write_scores(run, str(path), output)
        assert path.read_bytes() == before


def test_a_forecaster_is_sent_to_its_own_command(tmp_path):
    times = {"when": [f"2024-03-01 {row:02}:00" for row in range(24)], "load": [row % 5 for row in range(24)]}
    task = {"name": "forecasting", "dataset": f"csv:{write(tmp_path / 'past.csv', times)}", "lookback": 2, "horizon": 1}
    with pytest.raises(
        ConfigError, match=r"this run's task is forecasting of .*; use python -m flaxformer_lab.forecast$"
    ):
        predict(untrained(tmp_path / "run", task), tmp_path / "past.csv")


def test_new_rows_have_the_delimiter_of_the_run(tmp_path):
    """Of names with more commas than bars the comma would be taken."""
    columns = {"a, b, c": columns_of(ROWS)["size"], "y": [row % 2 for row in range(ROWS)]}
    path = write(tmp_path / "past.csv", columns, "|")
    task = {"name": "tabular_classification", "dataset": f"csv:{path}?target=y&delimiter=|"}
    run = untrained(tmp_path / "run", task)
    expected = run.predict({"a, b, c": columns["a, b, c"]})
    np.testing.assert_array_equal(run.predict(path), expected)
    assert len(predict(run, path).lines) == ROWS


def test_a_missing_number_of_a_new_row_is_no_reason_to_change_the_config(runs, tmp_path):
    file = write(tmp_path / "new.csv", columns_of(3) | {"size": ["1", "", "2"]})
    message = "column size of line 3 is missing, and the model was trained with task.missing=error; fill it in"
    with pytest.raises(DataError, match=message):
        predict(runs["classification"], file)


def test_rows_of_parquet_are_scored(runs, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns, run = columns_of(12), runs["classification"]
    parquet.write_table(pyarrow.table(columns), tmp_path / "new.parquet")
    found, expected = (predict(run, file) for file in (tmp_path / "new.parquet", write(tmp_path / "new.csv", columns)))
    assert (found.columns, found.metrics) == (expected.columns, expected.metrics) and found.metrics
    assert found.lines.tolist() == list(range(1, 13))


WRONG = {
    "another class": (
        {"kind": ["ugly"] * 3},
        DataError,
        r"line 2, column kind: 'ugly' is none of the classes bad, good",
    ),
    "no class": ({"kind": ["bad", "", "bad"]}, DataError, "line 3, column kind: it has no value"),
    "a column too few": ({"colour": None}, ConfigError, "lacks column colour"),
    "an unknown column": ({"weight": [1, 2, 3]}, ConfigError, "has column weight"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_do_not_fit_are_refused(runs, tmp_path, case):
    change, error, message = WRONG[case]
    columns = {name: values for name, values in (columns_of(3) | change).items() if values is not None}
    with pytest.raises(error, match=message):
        predict(runs["classification"], write(tmp_path / "new.csv", columns))


# ------------------------------------------------------------------------------------------ cold cases


def task_of(tmp_path, columns, target="kind", name="tabular_classification", options="", **knobs):
    path = write(tmp_path / "cold.csv", columns)
    config = parse_config({"task": {"name": name, "dataset": f"csv:{path}?target={target}{options}", **knobs}})
    return make_task(config.task)


def test_a_training_split_of_one_class_is_refused(tmp_path):
    columns = columns_of(ROWS)
    columns["part"] = ["train" if kind == "good" else "test" for kind in columns["kind"]]
    task = task_of(tmp_path, columns, options="&split=column:part&drop=price")
    with pytest.raises(DataError, match="all rows of train are good, and it needs something to learn"):
        task.examples("train")


def test_a_test_split_of_one_class_has_an_accuracy_and_no_area_under_the_curve(tmp_path):
    columns = columns_of(ROWS)
    bad = [row for row, kind in enumerate(columns["kind"]) if kind == "bad"]
    columns["part"] = ["test" if row in bad[:5] else "train" for row in range(ROWS)]
    options = "&split=column:part&drop=price"
    assert task_of(tmp_path, columns, options=options).examples("test").number == 5
    task = task_of(tmp_path, columns, options=options, metric="auc")
    with pytest.raises(DataError, match=r"all rows of test are bad, and it needs both, for task\.metric=auc"):
        task.examples("test")


def test_a_constant_column_and_a_copy_of_the_target_are_named(tmp_path):
    columns = columns_of(ROWS)
    columns["copy"] = columns["price"]
    task = task_of(tmp_path, columns, target="price", name="tabular_regression", options="&drop=kind")
    facts = " ".join(str(row) for row in task.facts())
    assert "always is left out: it is always x" in facts and "copy equals the target, price, a likely leak" in facts


def test_ten_thousand_categories_are_levels_of_one_column(tmp_path):
    """Those that training has; the others are unknown, level 0."""
    random = np.random.default_rng(0)
    columns = {"user": [f"u{user}" for user in random.permutation(np.repeat(np.arange(10_000), 2))]}
    columns |= {"size": random.normal(size=20_000).tolist(), "kind": random.choice(["good", "bad"], 20_000).tolist()}
    path = write(tmp_path / "many.csv", columns)
    contents = read(parse_address(f"csv:{path}?target=kind&rare=1"))
    rows = {split: [example["source_row"] - 2 for example in contents.splits[split]()] for split in ("train", "test")}
    seen = {columns["user"][row] for row in rows["train"]}
    (category,) = Schema.from_json(contents.metadata["table"]).categories
    assert 8_000 < len(seen) < 10_000 and set(category.levels) == seen | {"unknown"}
    codes = [example["categories"][0] for example in contents.splits["test"]()]
    found = [category.levels[code] if code else "unknown" for code in codes]
    assert found == [user if (user := columns["user"][row]) in seen else "unknown" for row in rows["test"]]
