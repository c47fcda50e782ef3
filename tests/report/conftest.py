"""The small ablation of tests/ablation, whose stores are filled with results that were never trained."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab.report.statistics import Interval
from flaxformer_lab.report.summary import Score
from flaxformer_lab.tasks import PrimaryMetric

# A file of the folder beside this one, which is no package.
made_up = runpy.run_path(str(Path(__file__).parents[1] / "ablation" / "conftest.py"))
claim, grid, judged_by, result, store = (made_up[name] for name in ("claim", "grid", "judged_by", "result", "store"))


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
            "interval": Interval(0.5, math.nan, math.nan),
            "interquartile_mean": 0.5,
            "parameters": 1,
            "forward_flops": 1,
            "bound": None,
            "steps": (1,),
            "curves": np.full((1, 1), 0.5),
            "reached": None,
            "measures": {},
            "seconds": 1.0,
        }
        return Score(**(known | fields))

    return make
