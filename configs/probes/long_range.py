"""Long range: the content of a marked token 32 positions back.

Attention reaches it in one layer, a convolution only if depth x kernel does.

Command: python train.py --config=configs/probes/long_range.py
Variants to try: --ablation=cnn_1d, --ablation=lstm, --config.task.distance=8
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 137 s (CNN 54 s, LSTM 97 s).
Result: R2 1.000; CNN -0.001, LSTM 0.999.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "marked_token"},
            "model": {"width": 64, "depth": 2, "attention": {"num_heads": 4}, "causal": True},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "clip_norm": 1.0},
            "training": {
                "steps": 1500,
                "batch_size": 64,
                "evaluate_every": 375,
                "checkpoint_every": 1500,
                "steps_per_call": 50,
                "evaluate_batch_size": 1024,
            },
        }
    )
