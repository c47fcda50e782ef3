"""A small ablation, and stores filled with results that were never trained."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flaxformer_lab.ablation.grid import Cell, Grid, make_grid, parse_ablation
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.tasks import PrimaryMetric
from flaxformer_lab.tasks.probes import Delay

GAP = 1 / 16  # from a made-up score on test down to the one on validation
RECIPE = {
    "task": {"name": "delay", "tokens": 4, "features": 4, "evaluation_examples": 32},
    "model": {
        "width": 8,
        "depth": 1,
        "attention": {"num_heads": 2},
        "ffn": {"expansion": 1.0},
        "causal": True,
        "bias": False,
    },
    "training": {
        "steps": 4,
        "batch_size": 4,
        "evaluate_every": 2,
        "checkpoint_every": 4,
        "steps_per_call": 2,
        "evaluate_batch_size": 32,
    },
}
ABLATION = {
    "tasks": {"near": {"recipe": "delay.py"}, "far": {"recipe": "delay.py", "overrides": {"task": {"tokens": 6}}}},
    "variants": {"ffn_off": "ffn_off", "one head": {"model": {"attention": {"num_heads": 1}}}},
    "learning_rates": (0.01, 0.03),
    "max_extensions": 0,
    "seeds": (0, 1),
}
CLAIM = {
    "name": "C4",
    "statement": "The FFN helps.",
    "comparisons": [
        {
            "name": "helps",
            "question": "does the FFN help?",
            "more": {"task": "near"},
            "less": {"task": "near", "variant": "ffn_off"},
            "threshold": 0.1,
        }
    ],
    "conclusions": [
        {"verdict": "supported", "reason": "it helps", "when": {"helps": "yes"}},
        {"verdict": "refuted", "reason": "it does not help"},
    ],
}


def recipe_file(tree: Mapping[str, Any] = RECIPE) -> str:
    """The text of a recipe."""
    return f"def get_config():\n    return {dict(tree)!r}\n"


@pytest.fixture
def recipe() -> dict[str, Any]:
    """The recipe of every task."""
    return dict(RECIPE)


@pytest.fixture
def claim() -> dict[str, Any]:
    """A claim as plain data."""
    return copy.deepcopy(CLAIM)


@pytest.fixture
def grid() -> Callable[..., Grid]:
    """The function that makes a grid: `grid({"match": "flops"}, recipe={...})`."""

    def make(changes: Mapping[str, Any] | None = None, recipe: Mapping[str, Any] = RECIPE) -> Grid:
        config = parse_ablation({**ABLATION, **(changes or {})})
        return make_grid(config, Path("/nowhere"), lambda path, overrides: dict(recipe))

    return make


@pytest.fixture
def result() -> Callable[..., dict[str, Any]]:
    """The function that makes up a cell's result: `result(cell, score=0.5)`, or one score a seed and learning rate.

    The scores are those on test. Those on validation are others: lower by `GAP`, or what `validation` says.
    """

    def make(
        cell: Cell,
        score: Any = 0.5,
        measures: Mapping[str, float] | None = None,
        bound: Any = None,
        validation: Any = None,
    ):
        def finite(values: Any) -> list[float | None]:
            values = np.broadcast_to(values, len(cell.replicas)).astype(float)
            return [None if np.isnan(value) else float(value) for value in values]

        tests = finite(score)
        ends = finite(np.asarray(score) - GAP if validation is None else validation)
        metric = cell.primary_metric.name
        return {
            "task": cell.task,
            "variant": cell.variant,
            "parameters": 100,
            "forward_flops": 200,
            "bound": bound,
            "steps": [2, 4],
            "replicas": [
                {
                    "seed": replica.seed,
                    "learning_rate": replica.learning_rate,
                    "validation": {"loss": [1.0, 0.5], metric: [0.0, end]},
                    "test": {"loss": 0.25, metric: value},
                    "measures": dict(measures or {"cross_feature_energy": 0.3, "cross_token_energy": 0.2}),
                }
                for replica, value, end in zip(cell.replicas, tests, ends, strict=True)
            ],
            "seconds": 1.0,
        }

    return make


@pytest.fixture
def judged_by(monkeypatch) -> Callable[[PrimaryMetric], None]:
    """The function that gives the task of the small ablation another primary metric."""
    return lambda metric: monkeypatch.setattr(Delay, "primary_metric", metric)


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty store."""
    return Store(tmp_path / "ablation")


@pytest.fixture
def work_elsewhere(store) -> Iterator[Callable[[Cell], subprocess.Popen]]:
    """The function that starts another process, which has a cell's lock until it is killed."""
    script = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    processes = []

    def work(cell: Cell) -> subprocess.Popen:
        command = [sys.executable, "-c", script, str(store.path / "cells" / f"{cell.key}.lock")]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "locked\n"
        return processes[-1]

    yield work
    for process in processes:
        process.kill()
        process.communicate()
