"""Two marks of an image, 12 cells apart: are they alike?

Command: python train.py --config=configs/probes/two_marks.py
Variants to try: --ablation=cnn_2d, which sees 8 cells apart; --config.task.relation=order with model.position=off
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: TIME
Result: RESULT
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "two_marks", "rows": 2, "columns": 16, "distance": 12},
            "model": {"width": 16, "depth": 2, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}},
            "optimizer": {"name": "adamw", "learning_rate": 0.01, "warmup_steps": 20},
            "training": {
                "steps": 600,
                "batch_size": 64,
                "evaluate_every": 100,
                "checkpoint_every": 600,
                "steps_per_call": 50,
                "evaluate_batch_size": 1024,
            },
        }
    )
