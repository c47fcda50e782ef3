"""Faster R-CNN on the scenes of configs/scenes.py: anchors, proposals, two stages.

Command: python train.py --config=configs/detectors/faster_rcnn.py
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Between backbone and head stands one residual block of convolutions."""
    return ConfigDict(
        {
            "task": {"name": "scenes", "detector": "faster_rcnn"},
            "model": {"name": "cnn_2d", "width": 64, "depth": 1},
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "warmup_steps": 100, "clip_norm": 1.0},
            "training": {"steps": 1000, "batch_size": 32, "evaluate_every": 250, "checkpoint_every": 1000},
        }
    )
