"""A control as a row of an ablation: fitted instead of trained, stored, searched and reported as the others."""

from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab.ablation import local
from flaxformer_lab.ablation.engine import run_cells
from flaxformer_lab.ablation.grid import make_grid, parse_ablation
from flaxformer_lab.ablation.local import train_here
from flaxformer_lab.ablation.population import Outcome
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.registry import register
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.report.write import write_report
from flaxformer_lab.tasks.controls import Fit


@pytest.fixture
def fits(own_parts):
    """What was fitted, by seed and rate: a control that knows the answer but for noise, which the best rate lacks."""
    done = []

    @register("control", "oracle", fits=("delay",), rates=(0.5, 1.0, 2.0), drawn=False)
    def oracle(task, seed, rate):
        done.append((seed, rate))
        return Fit(lambda inputs: np.roll(inputs, 1, axis=1) * (1 + abs(rate - 2.0)), parameters=7)

    @register("control", "noise", fits=("delay",), rates=(1.0,), drawn=True)
    def noise(task, seed, rate):
        done.append((seed, rate))
        return Fit(lambda inputs: np.random.default_rng(seed).normal(size=inputs.shape))

    return done


CONTROLS = {"variants": {"oracle": {"control": "oracle"}, "noise": {"control": "noise"}}, "max_extensions": 1}


def test_a_control_has_a_key_and_rates_of_its_own(fits, grid, store):
    made = grid(CONTROLS)
    cells = [made.cell("near", name) for name in ("baseline", "oracle", "noise")]
    assert len({cell.key for cell in cells}) == 3
    assert [sorted({each.learning_rate for each in cell.replicas}) for cell in cells] == [
        [0.01, 0.03],
        [0.5, 1.0, 2.0],
        [1.0],
    ]
    store.claim(made)
    assert store.read().cells == made.cells


class Untrained:
    """A population that is done at once."""

    def __init__(self, config, replicas):
        self.replicas = tuple(replicas)

    def with_replicas(self, replicas):
        return Untrained(None, replicas)

    def run(self, progress):
        number = len(self.replicas)
        validation, test = ({name: np.zeros(shape) for name in ("loss", "r2")} for shape in ((number, 2), number))
        return Outcome(self.replicas, (2, 4), validation, test, {}, (), seconds=0.0)


def test_a_control_is_fitted_searched_and_reported(fits, grid, store, monkeypatch):
    monkeypatch.setattr(local, "Population", Untrained)
    made = grid(CONTROLS | {"tasks": {"near": {"recipe": "delay.py"}}})
    store.claim(made)
    run_cells(made, store, lambda event: None, train_here)
    # One fit a rate where no seed matters, and an extension beyond the best rate, at the edge.
    assert fits.count((0, 2.0)) == 1 and (1, 2.0) not in fits and {(0, 1.0), (1, 1.0)} <= set(fits)
    assert {(0, 4.0), (0, 8.0), (0, 16.0)} <= set(fits)
    summary = summarise(made, store)
    oracle = summary.score("near", "oracle")
    assert oracle.learning_rate == 2.0 and oracle.interval.mean == pytest.approx(1.0, abs=1e-3)
    assert oracle.parameters == 7 and oracle.forward_flops == 0
    assert len(set(summary.score("near", "noise").values)) == 2
    assert summary.difference("near", "oracle").at_equal_flops is None
    report = write_report(made, store)
    assert not report.summary.failures and "oracle" in (Path(store.path) / "report.html").read_text()


def test_an_unknown_control_is_a_mistake(fits, grid):
    with pytest.raises(ConfigError, match="control=orakel is no control: did you mean oracle"):
        grid({"variants": {"x": {"control": "orakel"}}})


def test_a_control_that_fits_no_task_is_a_mistake(fits, recipe):
    config = parse_ablation({"tasks": {"near": {"recipe": "delay.py"}}, "variants": {"x": {"control": "trees"}}})
    with pytest.raises(ConfigError, match=r"variants\.x fits none of the tasks: control=trees does not fit"):
        make_grid(config, Path("/nowhere"), lambda path, overrides: dict(recipe))
