"""MAD: compression (Poli et al. 2024), at the paper's size.

200 epochs over the paper's number of sequences; the paper takes the best of learning rates 1e-4, 5e-4, 1e-3 and of
weight decay 0, 0.1.

Command: python train.py --config=configs/probes/mad/compression.py
Variants to try: --config.optimizer.weight_decay=0.1, --config.optimizer.learning_rate=5e-4
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 0.41 CPU seconds per update, timed over 8 updates beside other work; not run to the end (20,000).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "compression"},
            "model": {
                "width": 128,
                "depth": 2,
                "attention": {"num_heads": 4},
                "ffn": {"kind": "gated", "activation": "silu", "expansion": 4.0},
                "norm": {"kind": "rmsnorm"},
                "causal": True,
            },
            "optimizer": {"learning_rate": 0.001, "weight_decay": 0.0},
            "training": {
                "steps": 20000,
                "batch_size": 128,
                "evaluate_every": 2000,
                "checkpoint_every": 20000,
                "steps_per_call": 50,
            },
        }
    )
