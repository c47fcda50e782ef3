"""The engine in this process, on cells that train in no time."""

import types
import typing

import jax
import numpy as np
import pytest

from flaxformer_lab.ablation import engine, local
from flaxformer_lab.ablation.claim_config import Measure
from flaxformer_lab.ablation.engine import best_learning_rate, run_cells
from flaxformer_lab.ablation.local import train_here
from flaxformer_lab.ablation.population import Outcome, train_population
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.evaluate import load_run
from flaxformer_lab.tasks import PrimaryMetric

ONE = {"variants": {}, "learning_rates": (0.01, 0.03), "seeds": (0, 1)}


@pytest.fixture
def events():
    """What the engine told."""
    return []


@pytest.fixture
def without_training(monkeypatch):
    """Populations that are done at once, where what the engine does around them is the point.

    The function that it gives makes those of some numbers of tokens fail.
    """
    failing = set()

    class Population:
        def __init__(self, config, replicas):
            if config.task.tokens in failing:
                raise ValueError("out of luck\nand more")
            self.replicas = tuple(replicas)

        def run(self, progress):
            progress(4, 4)
            ends, number = (2, 4), len(self.replicas)
            validation, test = ({name: np.zeros(shape) for name in ("loss", "r2")} for shape in ((number, 2), number))
            return Outcome(self.replicas, ends, validation, test, {}, (), seconds=0.0)

    def fail(*tokens):
        failing.clear()
        failing.update(tokens)

    monkeypatch.setattr(local, "Population", Population)
    return fail


@pytest.fixture(scope="module")
def trained():
    """The function that trains a cell's population, once."""
    outcomes = {}

    def train(cell):
        if cell.key not in outcomes:
            outcomes[cell.key] = train_population(cell.config, cell.replicas)
        return outcomes[cell.key]

    return train


def of_kind(events, what):
    return [(each.cell.task, each.cell.variant) for each in events if each.what == what]


def test_every_cell_is_trained_once_and_its_result_is_that_of_its_population(grid, store, events, trained):
    made = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}})
    store.claim(made)
    run_cells(made.cells, store, "chosen", events.append, train_here)
    assert of_kind(events, "finished") == [("near", "baseline")]
    (cell,) = made.cells
    outcome, found = trained(cell), store.result(cell)
    assert len(list((store.path / "runs" / cell.key).iterdir())) == 2
    assert [(each["seed"], each["learning_rate"]) for each in found["replicas"]] == [
        (replica.seed, replica.learning_rate) for replica in cell.replicas
    ]
    for number, each in enumerate(found["replicas"]):
        assert each["test"]["r2"] == pytest.approx(outcome.test["r2"][number], abs=1e-6)
        np.testing.assert_allclose(each["validation"]["loss"], outcome.validation["loss"][number], atol=1e-6)
    assert found["steps"] == [2, 4] and found["parameters"] > 0 and found["forward_flops"] > 0
    assert found["bound"] is None
    assert set(found["replicas"][0]["measures"]) == set(typing.get_args(Measure))  # what a claim may name
    progress = [(each.done, each.total) for each in events if each.what == "progress"]
    assert progress[-1] == (4, 4) and progress == sorted(progress)
    events.clear()
    run_cells(made.cells, store, "none", events.append, train_here)
    assert events == []


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(grid, store, events, without_training):
    made = grid(ONE)
    store.claim(made)
    without_training(4)
    run_cells(made.cells, store, "none", events.append, train_here)
    assert of_kind(events, "failed") == [("near", "baseline")] and of_kind(events, "finished") == [("far", "baseline")]
    assert store.failure(made.cells[0]) == "ValueError: out of luck"
    without_training()
    run_cells(made.cells, store, "none", events.append, train_here)  # the next time it is tried again
    assert store.failure(made.cells[0]) is None and store.result(made.cells[0]) is not None


def test_an_interruption_is_no_failure(grid, store, events, without_training):
    made = grid(ONE)
    store.claim(made)

    def interrupted(event):
        events.append(event)
        if event.what == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(made.cells, store, "none", interrupted, train_here)
    assert store.failure(made.cells[0]) is None and store.result(made.cells[0]) is None
    with store.locked(made.cells[0]) as free, store.locked(made.cells[1]) as next_one_too:
        assert free and next_one_too


@pytest.fixture
def waits(monkeypatch):
    """The function that takes what happens while the engine waits for other processes, each time."""

    def set_up(happen):
        monkeypatch.setattr(engine, "time", types.SimpleNamespace(sleep=lambda seconds: happen()))

    return set_up


def test_a_cell_that_another_process_works_on_is_left_to_it(
    grid, store, result, events, work_elsewhere, waits, without_training
):
    made = grid(ONE)
    store.claim(made)
    theirs = made.cells[0]
    other = work_elsewhere(theirs)

    def finish():
        store.finish(theirs, result(theirs, 0.25))
        other.kill()
        other.wait(60)

    waits(finish)
    run_cells(made.cells, store, "none", events.append, train_here)
    assert other.poll() is not None and of_kind(events, "started") == [("far", "baseline")]
    assert store.result(theirs)["replicas"][0]["test"]["r2"] == 0.25


def test_a_cell_whose_process_died_is_taken_over(grid, store, events, work_elsewhere, waits, without_training):
    made = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}})
    store.claim(made)
    other = work_elsewhere(made.cells[0])

    def die():
        other.kill()
        other.wait(60)

    waits(die)
    run_cells(made.cells, store, "none", events.append, train_here)
    assert other.poll() is not None and store.result(made.cells[0]) is not None


def test_replicas_are_kept_as_ordinary_runs(grid, store, trained, tmp_path):
    """Those of the rate that was chosen, or all of them."""
    (cell,) = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}}).cells
    outcome = trained(cell)
    found = engine.result_of(cell, outcome)
    chosen = engine.save_kept(cell, outcome, found, store, "chosen")
    assert len(chosen) == 2 and sorted((store.path / "runs" / cell.key).iterdir()) == sorted(chosen)
    for folder in chosen:
        run = load_run(folder)
        (same,) = [
            each
            for each in found["replicas"]
            if (each["seed"], each["learning_rate"]) == (run.config.seed, run.config.optimizer.learning_rate)
        ]
        assert run.evaluate("test")["r2"] == pytest.approx(same["test"]["r2"], abs=1e-6)
    kept = engine.save_kept(cell, outcome, found, Store(tmp_path / "other"), "all")
    assert [load_run(folder).config.seed for folder in kept] == [each.seed for each in cell.replicas]


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ({0.1: [0.5, 0.7], 0.01: [0.65, 0.65], 1.0: [0.9, None]}, True, 0.01),
        ({0.1: [0.5, 0.7], 0.01: [0.65, 0.65], 1.0: [0.9, None]}, False, 0.1),
        ({0.1: [1.0], 0.01: [1.0]}, True, 0.01),
        ({0.1: [None], 0.01: [None]}, False, 0.01),
    ],
)
def test_the_learning_rate_is_the_best_on_average(scores, higher, best):
    """By the metric that the task is judged by, at the end; one that diverged is the worst."""
    replicas = [
        {"learning_rate": rate, "validation": {"loss": [0.0], "auc": [0.5, value]}}
        for rate, values in scores.items()
        for value in values
    ]
    assert best_learning_rate({"replicas": replicas}, PrimaryMetric("auc", "AUC", higher)) == best


def test_the_rate_is_chosen_on_validation_alone():
    """On test, and by the loss, the other rate would win."""
    replicas = [
        {
            "learning_rate": rate,
            "validation": {"loss": [good], "auc": [0.9, 1 - good]},
            "test": {"loss": good, "auc": good},
        }
        for rate, good in ((0.1, 0.2), (0.01, 0.8))
    ]
    assert best_learning_rate({"replicas": replicas}, PrimaryMetric("auc", "AUC", higher_is_better=True)) == 0.1
    replicas[0]["validation"]["auc"] = [0.1, 0.2]
    assert best_learning_rate({"replicas": replicas}, PrimaryMetric("auc", "AUC", higher_is_better=False)) == 0.01


def test_a_result_tells_validation_from_test_and_keeps_the_chosen_rates_examples(grid):
    """The chosen rate is the one of validation; its seeds' test examples are summed, and no other's."""
    (cell,) = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}}).cells
    rates = np.array([replica.learning_rate for replica in cell.replicas])
    good = np.where(rates == 0.03, 0.7, 0.4)
    validation = {"loss": np.ones((4, 2)), "r2": np.stack([np.zeros(4), good], axis=1)}
    test = {"loss": np.full(4, 2.0), "r2": 1 - good}
    examples = np.arange(24.0).reshape(4, 2, 3)
    outcome = Outcome(cell.replicas, (2, 4), validation, test, {}, (), seconds=0.0, test_examples=examples)
    found = engine.result_of(cell, outcome)
    assert [each["validation"]["r2"][-1] for each in found["replicas"]] == good.tolist()
    assert [each["test"]["r2"] for each in found["replicas"]] == (1 - good).tolist()
    totals, weights = examples[rates == 0.03].sum(axis=0).tolist()
    assert found["test_examples"] == {"learning_rate": 0.03, "totals": totals, "weights": weights}


def test_programs_of_earlier_cells_are_forgotten(grid, store, monkeypatch, without_training):
    cleared = []
    monkeypatch.setattr(local, "CELLS_A_CACHE", 2)
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))
    made = grid(ONE)
    store.claim(made)
    run_cells(made.cells, store, "none", lambda event: None, train_here)
    assert cleared == [1]
