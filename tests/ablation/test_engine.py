"""The engine in this process, on cells that train in no time."""

import dataclasses
import math
import threading
import types
import typing

import jax
import numpy as np
import pytest

from flaxformer_lab.ablation import engine, local, rates
from flaxformer_lab.ablation.claim_config import Measure
from flaxformer_lab.ablation.engine import run_cells
from flaxformer_lab.ablation.local import train_here
from flaxformer_lab.ablation.population import Outcome, train_population
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks.forecasting import MSE
from flaxformer_lab.tasks.probes import Delay

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


@pytest.mark.integration
def test_every_cell_is_trained_once_and_its_result_is_that_of_its_population(grid, store, events, trained):
    made = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}, "keep": "chosen"})
    store.claim(made)
    run_cells(made, store, events.append, train_here)
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
    named = set(typing.get_args(Measure)) - {*MSE.beside}  # what a claim may name
    assert set(found["replicas"][0]["measures"]) == {
        name for name in named if not name.startswith("object_") and name != "int8_score"
    }
    progress = [(each.done, each.total) for each in events if each.what == "progress"]
    assert progress[-1] == (4, 4) and progress == sorted(progress)
    events.clear()
    run_cells(made, store, events.append, train_here)
    assert events == []


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(grid, store, events, without_training):
    made = grid(ONE)
    store.claim(made)
    without_training(4)
    run_cells(made, store, events.append, train_here)
    assert of_kind(events, "failed") == [("near", "baseline")] and of_kind(events, "finished") == [("far", "baseline")]
    assert store.failure(made.cells[0]) == "ValueError: out of luck"
    without_training()
    run_cells(made, store, events.append, train_here)  # the next time it is tried again
    assert store.failure(made.cells[0]) is None and store.result(made.cells[0]) is not None


def test_cells_of_one_ablation_are_trained_on_the_same_files(grid, store, events, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.npz"
    task = {"name": "tabular_classification", "dataset": f"npz:{path}"}
    recipe = {**recipe, "task": task, "model": {"width": 8, "depth": 1}}
    made = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}, "variants": {"ffn_off": "ffn_off"}}, recipe=recipe)
    store.claim(made)

    def save(factor):
        np.savez(path, x=factor * np.arange(40.0).reshape(20, 2), y=np.arange(20) % 2)

    def train(waiting, store, listen):
        cell = waiting.popleft()
        ends, number = (2, 4), len(cell.replicas)
        validation, test = ({name: np.zeros(shape) for name in ("loss", "accuracy")} for shape in ((number, 2), number))
        yield cell, lambda: Outcome(cell.replicas, ends, validation, test, {}, (), seconds=0.0)
        raise KeyboardInterrupt

    save(1)
    with pytest.raises(KeyboardInterrupt):
        run_cells(made, store, events.append, train)
    first = next(cell for cell in made.cells if store.result(cell))
    content = store.result(first)["provenance"]["data"]
    save(2)
    with pytest.raises(
        ConfigError, match=r"ablation was started with other data: npz:.*a\.npz has changed since; restore the files"
    ):
        run_cells(made, store, events.append, train)
    save(1)
    with pytest.raises(KeyboardInterrupt):
        run_cells(made, store, events.append, train)
    assert [store.result(cell)["provenance"]["data"] for cell in made.cells] == [content] * 2
    path.unlink()
    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(tmp_path / "empty"))
    run_cells(made, store, events.append, train)  # all is finished


def test_an_interruption_is_no_failure(grid, store, events, without_training):
    made = grid(ONE)
    store.claim(made)

    def interrupted(event):
        events.append(event)
        if event.what == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(made, store, interrupted, train_here)
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
    run_cells(made, store, events.append, train_here)
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
    run_cells(made, store, events.append, train_here)
    assert other.poll() is not None and store.result(made.cells[0]) is not None


@pytest.mark.integration
def test_replicas_are_kept_as_ordinary_runs(grid, store, trained, tmp_path):
    """Those of the rate that was chosen, or all of them."""
    made = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}, "keep": "chosen"})
    (cell,) = made.cells
    outcome = trained(cell)
    found = engine.result_of(cell, outcome)
    chosen = engine.save_kept(cell, cell, outcome, found, store, made.config)
    assert len(chosen) == 2 and sorted((store.path / "runs" / cell.key).iterdir()) == sorted(chosen)
    for folder in chosen:
        run = load_run(folder)
        (same,) = [
            each
            for each in found["replicas"]
            if (each["seed"], each["learning_rate"]) == (run.config.seed, run.config.optimizer.learning_rate)
        ]
        assert run.evaluate("test")["r2"] == pytest.approx(same["test"]["r2"], abs=1e-6)
    every = dataclasses.replace(made.config, keep="all")
    kept = engine.save_kept(cell, cell, outcome, found, Store(tmp_path / "other"), every)
    assert [load_run(folder).config.seed for folder in kept] == [each.seed for each in cell.replicas]


def test_a_result_tells_validation_from_test_and_sums_each_rates_examples(grid):
    """The test examples of a rate are summed over its seeds, and over no others."""
    (cell,) = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}}).cells
    rates = np.array([replica.learning_rate for replica in cell.replicas])
    good = np.where(rates == 0.03, 0.7, 0.4)
    validation = {"loss": np.ones((4, 2)), "r2": np.stack([np.zeros(4), good], axis=1)}
    test = {"loss": np.full(4, 2.0), "r2": 1 - good}
    examples = np.arange(24.0).reshape(4, 2, 3)
    outcome = Outcome(cell.replicas, (2, 4), validation, test, {}, (), seconds=0.0, test_examples=examples)
    beside = engine.result_of(cell, dataclasses.replace(outcome, beside_examples={"mae": -examples}))["test_examples"]
    found = engine.result_of(cell, outcome)
    assert beside[:2] == found["test_examples"] and [each["metric"] for each in beside[2:]] == ["mae", "mae"]
    assert [each["validation"]["r2"][-1] for each in found["replicas"]] == good.tolist()
    assert [each["test"]["r2"] for each in found["replicas"]] == (1 - good).tolist()
    for each in found["test_examples"]:
        totals, weights = examples[rates == each["learning_rate"]].sum(axis=0).tolist()
        assert (each["totals"], each["weights"]) == (totals, weights)
    assert [each["learning_rate"] for each in found["test_examples"]] == sorted(set(rates))


def test_examples_that_no_seed_weighs_are_left_out_and_others_stay_where_they_are(grid):
    """A window of which a seed hides no token has no weight with that seed alone."""
    (cell,) = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}}).cells
    values = {name: np.zeros(4) for name in ("loss", "r2")}
    validation = {name: np.zeros((4, 1)) for name in values}
    totals, weights = np.arange(16.0).reshape(4, 4), np.ones((4, 4))
    weights[0, 1] = weights[:, 3] = 0
    totals *= weights
    examples = np.stack([totals, weights], axis=1)
    outcome = Outcome(cell.replicas, (4,), validation, values, {}, (), seconds=0.0, test_examples=examples)
    rates = np.array([replica.learning_rate for replica in cell.replicas])
    for each in engine.result_of(cell, outcome)["test_examples"]:
        mine = rates == each["learning_rate"]
        assert each["totals"] == totals[mine].sum(axis=0)[:3].tolist()
        assert each["weights"] == weights[mine].sum(axis=0)[:3].tolist()


def test_examples_that_share_data_are_summed_in_blocks(grid, monkeypatch):
    (cell,) = grid({**ONE, "tasks": {"near": {"recipe": "delay.py"}}}).cells
    values = {name: np.zeros(4) for name in ("loss", "r2")}
    validation = {name: np.zeros((4, 1)) for name in values}
    examples = np.random.default_rng(0).normal(size=(4, 2, 7))
    outcome = Outcome(cell.replicas, (4,), validation, values, {}, (), seconds=0.0, test_examples=examples)
    monkeypatch.setattr(Delay, "overlap", 3)
    rates = np.array([replica.learning_rate for replica in cell.replicas])
    for each in engine.result_of(cell, outcome)["test_examples"]:
        sums = examples[rates == each["learning_rate"]].sum(axis=0)
        expected = [[part[0:3].sum(), part[3:6].sum(), part[6]] for part in sums]
        np.testing.assert_allclose([each["totals"], each["weights"]], expected, rtol=1e-12)


def test_programs_of_earlier_cells_are_forgotten(grid, store, monkeypatch, without_training):
    cleared = []
    monkeypatch.setattr(local, "CELLS_A_CACHE", 2)
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))
    made = grid(ONE)
    store.claim(made)
    run_cells(made, store, lambda event: None, train_here)
    assert cleared == [1]


@pytest.fixture
def best_at(monkeypatch):
    """The function that makes the score of a replica one that is the better the nearer its rate is to a given one.

    It gives what was trained: for each population, whether it was compiled, and its rates.
    """
    trained = []

    class Population:
        def __init__(self, config, replicas):
            self.replicas, self.compiled = tuple(replicas), True

        def with_replicas(self, replicas):
            other = Population(None, replicas)
            other.compiled = False
            return other

        def run(self, progress):
            trained.append((self.compiled, sorted({replica.learning_rate for replica in self.replicas})))
            scores = np.array([-abs(math.log(replica.learning_rate / Population.best)) for replica in self.replicas])
            validation = {name: np.stack([scores, scores], axis=1) for name in ("loss", "r2")}
            test = dict.fromkeys(("loss", "r2"), scores)
            return Outcome(self.replicas, (2, 4), validation, test, {}, (), seconds=1.0)

    def set_up(rate):
        Population.best = rate
        monkeypatch.setattr(local, "Population", Population)
        return trained

    return set_up


def test_a_grid_grows_until_the_best_rate_lies_inside(grid, store, events, best_at):
    made = grid({**ONE, "max_extensions": 3})
    store.claim(made)
    trained = best_at(0.25)
    run_cells(made, store, events.append, train_here)
    # Each extension has the programs of its cell, and comes before the cells that wait.
    assert sorted(trained) == sorted(2 * [(True, [0.01, 0.03]), (False, [0.09, 0.27]), (False, [0.81, 2.43])])
    (cell, _), config = made.cells, made.config
    whole, following = rates.progress(cell, store, config)
    assert following is None and rates.edge_of(whole, cell.primary_metric) is None
    assert rates.best_learning_rate(whole, cell.primary_metric) == 0.27
    assert [event.following is None for event in events if event.what == "finished"].count(True) == 2
    trained.clear()
    run_cells(made, store, events.append, train_here)
    assert not trained
    more = grid({**ONE, "max_extensions": 9})
    run_cells(more, store, events.append, train_here)  # what is found already is not searched again
    assert not trained


def test_a_few_seeds_find_the_rate_and_the_others_train_at_it(grid, store, events, best_at, monkeypatch):
    monkeypatch.setattr(engine, "save_replica", lambda config, outcome, number, folder: folder.mkdir(parents=True))
    tree = {**ONE, "max_extensions": 3, "seeds": (0, 1, 2), "search_seeds": 2, "keep": "chosen"}
    made = grid({**tree, "tasks": {"near": {"recipe": "delay.py"}}})
    store.claim(made)
    trained = best_at(0.25)
    run_cells(made, store, events.append, train_here)
    others = (True, [0.27])
    assert trained == [(True, [0.01, 0.03]), (False, [0.09, 0.27]), (False, [0.81, 2.43]), others]
    (cell,) = made.cells
    whole, following = rates.progress(cell, store, made.config)
    assert following is None
    assert [each["seed"] for each in whole["replicas"] if each["learning_rate"] == 0.27] == [0, 1, 2]
    assert summarise(made, store).score("near", "baseline").seeds == (0, 1, 2)
    assert store.read().cells[0].key == cell.key
    kept = sorted(path.name for path in store.path.glob("runs/*/*"))
    assert kept == [f"seed-{seed}-learning_rate-0.27" for seed in (0, 1, 2)]
    trained.clear()
    run_cells(made, store, events.append, train_here)
    assert not trained


@pytest.mark.parametrize(("cores", "ahead"), [(1, 1), (2, 1), (8, 2), (64, 3)])
def test_more_cells_are_compiled_at_a_time_where_there_are_more_cores(cores, ahead, monkeypatch):
    monkeypatch.setattr(local, "available_cores", lambda: cores)
    assert local.cells_ahead() == ahead


def test_cells_that_are_compiled_at_the_same_time_finish_in_order(grid, store, events, best_at, monkeypatch):
    made = grid({**ONE, "max_extensions": 2})
    store.claim(made)
    trained = best_at(0.25)
    both = threading.Barrier(2, timeout=60)
    begin = local.Population.__init__
    monkeypatch.setattr(local, "cells_ahead", lambda: 2)
    monkeypatch.setattr(local.Population, "__init__", lambda *arguments: (both.wait(), begin(*arguments))[1])
    run_cells(made, store, events.append, train_here)
    assert of_kind(events, "started") == of_kind(events, "finished")
    assert of_kind(events, "finished")[:2] == [("near", "baseline"), ("far", "baseline")]
    assert sorted(trained) == sorted(2 * [(True, [0.01, 0.03]), (False, [0.09, 0.27]), (False, [0.81, 2.43])])


def test_an_interrupted_search_goes_on_where_it_was(grid, store, events, best_at):
    made = grid({**ONE, "max_extensions": 1, "tasks": {"near": {"recipe": "delay.py"}}})
    store.claim(made)
    trained = best_at(0.0001)
    run_cells(made, store, events.append, train_here)
    assert trained.pop() == (False, [0.00111, 0.00333])
    (cell,) = made.cells
    whole, _ = rates.progress(cell, store, made.config)
    assert rates.edge_of(whole, cell.primary_metric) == "lowest"  # the limit is reached
    trained.clear()
    further = grid({**ONE, "max_extensions": 3, "tasks": {"near": {"recipe": "delay.py"}}})
    run_cells(further, store, events.append, train_here)
    assert [each for _, each in trained] == [[0.000123, 0.00037], [1.37e-05, 4.1e-05]]
    assert trained[0][0] and not trained[1][0]  # compiled again, once


def test_a_failed_extension_leaves_what_was_found(grid, store, events, best_at, monkeypatch):
    made = grid({**ONE, "max_extensions": 1, "tasks": {"near": {"recipe": "delay.py"}}})
    store.claim(made)
    best_at(1.0)
    monkeypatch.setattr(local.Population, "with_replicas", lambda self, replicas: 1 / 0)
    run_cells(made, store, events.append, train_here)
    (cell,) = made.cells
    whole, following = rates.progress(cell, store, made.config)
    assert len(whole["replicas"]) == 4 and store.failure(following).startswith("ZeroDivisionError")
