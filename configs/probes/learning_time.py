"""P5b: a linear target whose features arrive small.

Under Adam the steps to learn it grow as 1 / scale.

Command: python train.py --config=configs/probes/learning_time.py
Variants to try: --config.task.scale=0.316, 0.1, 0.032, 0.01 (with more steps)
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 6 s.
Result: R2 0.95 after 226 updates; 534, 1,400, 3,880 and 10,800 at the smaller scales.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "scaled_linear", "features": 8, "embedding": "identity"},
            "model": {"width": 8, "depth": 0, "norm": {"kind": "off"}, "position": "off", "bias": False},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 0, "clip_norm": 1.0, "schedule": "constant"},
            "training": {
                "steps": 12000,
                "batch_size": 128,
                "evaluate_every": 1000,
                "checkpoint_every": 12000,
                "steps_per_call": 200,
                "evaluate_batch_size": 1024,
            },
        }
    )
