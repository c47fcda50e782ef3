"""Cells as tasks of a real Ray cluster on this machine, one of whose nodes is killed half way."""

import json
import sys

import jax
import pytest

from flaxformer_lab import registry
from flaxformer_lab.ablation.cluster import cluster
from flaxformer_lab.ablation.engine import run_cells
from flaxformer_lab.ablation.local import train_here
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.errors import ConfigError

pytestmark = pytest.mark.integration

GRID = {"learning_rates": (0.01, 0.03), "seeds": (0, 1), "variants": {}, "keep": "chosen"}
OWN = """
from flaxformer_lab.modules.attention import MeanAttention
from flaxformer_lab.registry import register
@register("attention", "own", causal=True)
class Own(MeanAttention): pass
"""


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster whose two nodes have a core each, and its second node."""
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made, made.add_node(num_cpus=1)
    made.shutdown()


def figures(store, cell):
    """What a cell found, without the time it took and the device that it was found on."""
    return {key: value for key, value in store.result(cell).items() if key not in ("seconds", "provenance")}


@pytest.mark.slow
def test_a_killed_node_costs_nothing_but_time(two_nodes, grid, tmp_path, monkeypatch):
    nodes, second = two_nodes
    made, here, there = grid(GRID), Store(tmp_path / "here"), Store(tmp_path / "there")
    there.claim(made)
    started, finished, progress = [], [], []

    def listen(event):
        assert event.what != "failed", event
        {"started": started, "finished": finished, "progress": progress}[event.what].append(event)
        if len(started) == 2 and second in nodes.worker_nodes:  # each node has begun one
            nodes.remove_node(second, allow_graceful=False)

    with cluster(nodes.address, 1) as train:
        run_cells(made, there, listen, train)
    assert second not in nodes.worker_nodes
    assert len(finished) == len(made.cells) < len(started)  # what the second node had in hand was started again
    assert {event.cell.key for event in progress if event.done == event.total} == {cell.key for cell in made.cells}

    # The same here, on one device as in a worker: the same figures to the last bit.
    here.claim(made)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    run_cells(made, here, lambda event: None, train_here)
    assert [figures(there, cell) for cell in made.cells] == [figures(here, cell) for cell in made.cells]
    kept = sorted(path.name for path in (there.path / "runs").iterdir())
    assert kept == sorted(cell.key for cell in made.cells)


def test_an_error_in_a_worker_is_that_cells_own(two_nodes, grid, tmp_path, monkeypatch):
    nodes, _ = two_nodes
    store, made = Store(tmp_path / "run"), grid(GRID)
    store.claim(made)
    events = []

    def broken(number, cell, cpus, reports):
        raise MemoryError(f"cell {number} is too large\nand more")

    monkeypatch.setattr("flaxformer_lab.ablation.cluster.train_cell", broken)
    with cluster(nodes.address, 1) as train:
        run_cells(made, store, events.append, train)
    assert sorted(event.error for event in events) == [
        "MemoryError: cell 0 is too large",
        "MemoryError: cell 1 is too large",
    ]
    assert json.loads((store.path / "cells" / f"{made.cells[0].key}.failed.json").read_text())["task"] == "near"


def test_a_users_own_parts_travel_to_the_workers_as_text(two_nodes, grid, tmp_path, own_parts):
    nodes, _ = two_nodes
    file = tmp_path / "parts.py"
    file.write_text(OWN)
    registry.import_parts(str(file))
    file.unlink()
    tasks = {"near": {"recipe": "delay.py", "overrides": {"model": {"attention": {"kind": "own"}}}}}
    store, made = Store(tmp_path / "run"), grid(GRID | {"tasks": tasks, "seeds": (0,)})
    store.claim(made)
    events = []
    with cluster(nodes.address, 1) as train:
        run_cells(made, store, events.append, train)
    assert [event.error for event in events if event.what == "failed"] == []
    assert [cell.config.model.attention.kind for cell in made.cells if store.result(cell)] == ["own"]


def test_a_cell_that_fits_no_machine_is_refused(two_nodes):
    nodes, _ = two_nodes
    message = (
        "--cpu_devices=2 cores for each cell, but the largest machine of the Ray cluster offers 1; choose at most 1"
    )
    with pytest.raises(ConfigError, match=message), cluster(nodes.address, 2):
        pass


def test_without_ray_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"needs Ray: pip install -e '\.\[ray\]' in the lab's folder"),
        cluster(None, 1),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "message"),
    [
        pytest.param(
            "host:1",
            r"--ray_address=host:1: no cluster answers there \(nobody listens\)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            None, r"--engine=ray: no cluster could be made on this machine \(nobody listens\)", marks=pytest.mark.slow
        ),
    ],
)
def test_where_no_cluster_answers_the_error_says_so(monkeypatch, address, message):
    ray = pytest.importorskip("ray")

    def refuse(**options):
        raise ConnectionError("nobody listens\nand more")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigError, match=message), cluster(address, 1):
        pass
