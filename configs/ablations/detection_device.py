"""Detectors with queries, with anchors and dense ones, at the size of a GPU: the form `device` of detection.py.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/detection_device.py --workdir=runs/detection_device
Hardware: one NVIDIA H200, shared with seven other ablations.
Time: 94 s for the cell `dense`, 218 s for the baseline, compilation included; 3 of 14 cells have finished.
Result: docs/results/detection_device.md, of the values in docs/results/detection_device.csv.gz.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The ablation."""
    return runpy.run_path(str(Path(__file__).with_name("detection.py")))["get_config"]("device")
