"""MAD: in-context recall (Poli et al. 2024), at the paper's size.

200 epochs over the paper's number of sequences; the paper takes the best of learning rates 1e-4, 5e-4, 1e-3 and of
weight decay 0, 0.1.

Command: python train.py --config=configs/probes/mad/in_context_recall.py
Variants to try: --config.optimizer.weight_decay=0.1, --config.optimizer.learning_rate=5e-4
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 5.3 hours by 0.95 s per update, timed over 40 updates with the sequences of an earlier version; not run
to the end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "in_context_recall"},
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
