"""The small ablation of tests/ablation, whose stores are filled with results that were never trained."""

import functools
import math
import pickle
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab.report import page, task_section
from flaxformer_lab.report.statistics import Interval
from flaxformer_lab.report.summary import Score
from flaxformer_lab.tasks import PrimaryMetric

# A file of the folder beside this one, which is no package.
made_up = runpy.run_path(str(Path(__file__).parents[1] / "ablation" / "conftest.py"))
claim, grid, judged_by, result, store = (made_up[name] for name in ("claim", "grid", "judged_by", "result", "store"))


DRAWN: dict[bytes, str] = {}  # what `figures_drawn_once` remembers


def remembered(draw: Callable[..., str]) -> Callable[..., str]:
    """The function, which draws a figure of the same values once. That it has the same bytes: test_svg.py."""

    @functools.wraps(draw)
    def figure(*values, **options):
        key = pickle.dumps((draw.__name__, values, options))
        if key not in DRAWN:
            DRAWN[key] = draw(*values, **options)
        return DRAWN[key]

    return figure


@pytest.fixture(scope="module", autouse=True)
def figures_drawn_once() -> Iterator[None]:
    """Most of what these pages show is the same, and Matplotlib takes a tenth of a second for each figure."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (page, task_section):
            for name in {"learning_curve", "all_curves", "forest", "scatter", "threshold_figure"} & set(vars(module)):
                patch.setattr(module, name, remembered(getattr(module, name)))
        yield


@pytest.fixture
def score_of():
    """The function that makes the score of one variant, of which a test says what matters."""

    def make(**fields):
        known = {
            "task": "near",
            "variant": "baseline",
            "metric": PrimaryMetric("m", "M", higher_is_better=True),
            "learning_rate": 0.1,
            "seeds": (0,),
            "values": np.full(1, 0.5),
            "examples": None,
            "beside_examples": {},
            "interval": Interval(0.5, math.nan, math.nan),
            "succeeded": np.ones(1, bool),
            "share": Interval(1.0, math.nan, math.nan),
            "of_successes": None,
            "interquartile_mean": 0.5,
            "parameters": 1,
            "forward_flops": 1,
            "batch_size": 1,
            "bound": None,
            "steps": (1,),
            "curves": np.full((1, 1), 0.5),
            "reached": None,
            "measures": {},
            "seconds": 1.0,
            "provenance": {},
            "by_rate": {0.1: 0.5},
            "rate_edge": None,
            "converged": None,
        }
        return Score(**(known | fields))

    return make
