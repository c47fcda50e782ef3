"""What an ablation prints where there is no terminal: a line for each cell, and one a minute while it trains."""

import dataclasses
import io

import pytest
from rich.console import Console

from flaxformer_lab.ablation import display
from flaxformer_lab.ablation.engine import Event
from flaxformer_lab.ablation.population import Replica


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_a_long_cell_says_once_a_minute_how_far_it_is(grid, store, clock):
    grid = grid()
    cell, text = grid.cells[0], io.StringIO()
    with display.ProgressDisplay(grid, store, Console(file=text, width=120, highlight=False)) as show:
        show(Event("started", cell))
        for second in range(1, 151):
            clock[0] = float(second)
            show(Event("progress", cell, done=second, total=200))
        show(Event("finished", cell, seconds=150.0))
    name = f"{cell.task} / {cell.variant}"
    lines = text.getvalue().splitlines()
    assert lines[:2] == [f"     {name}, update 60 of 200", f"     {name}, update 120 of 200"]
    assert lines[2].startswith(f"1/{len(grid.cells)} {name}: 150.0 s") and len(lines) == 3


def test_a_live_bar_needs_no_lines(grid, store, clock):
    grid = grid()
    text = io.StringIO()
    with display.ProgressDisplay(grid, store, Console(file=text, force_terminal=True, width=120)) as show:
        clock[0] = 100.0
        show(Event("progress", grid.cells[0], done=1, total=2))
    assert "update 1 of 2\n" not in text.getvalue()


def test_what_a_cell_goes_on_with_is_more_rates_or_more_seeds(grid, store):
    grid = grid()
    cell, text = grid.cells[0], io.StringIO()
    rates = dataclasses.replace(cell, replicas=(Replica(0, 0.1), Replica(0, 0.3)))
    seeds = dataclasses.replace(cell, replicas=(Replica(2, 0.3), Replica(3, 0.3)))
    with display.ProgressDisplay(grid, store, Console(file=text, width=120, highlight=False)) as show:
        for following in (rates, seeds):
            show(Event("finished", cell, seconds=1.0, following=following))
    lines = text.getvalue().splitlines()
    assert lines[0].endswith("goes on with rates from 0.1 to 0.3")
    assert lines[1].endswith("goes on with 2 more seeds at 0.3")
