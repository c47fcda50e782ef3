"""Do Transformers lead the forecasting of time series? What C13 needs, for 2 cores: form `cores` of forecasting.py.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/forecasting_cores.py --workdir=runs/C13
Time: four hours on 2 cores of an AMD EPYC beside much other work, for the 15 cells of C13.
Result: docs/results/forecasting_cores.md, of the values in docs/results/forecasting_cores.csv.gz.
"""

import runpy
from pathlib import Path
from typing import Any


def get_config() -> dict[str, Any]:
    """The ablation."""
    return runpy.run_path(str(Path(__file__).with_name("forecasting.py")))["get_config"]("cores")
