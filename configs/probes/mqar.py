"""Multi-query associative recall at length 64 with 4 pairs (Arora et al. 2023).

Two attention layers solve it, one does not, and neither does an LSTM of the same size.

Command: python train.py --config=configs/probes/mqar.py
Variants to try: --config.model.depth=1, --ablation=lstm
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 94 s (one layer 68 s, LSTM 116 s).
Result: accuracy 1.000; one layer 0.255, LSTM 0.250.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "associative_recall", "vocabulary": 256, "sequence_length": 64, "pairs": 4},
            "model": {"width": 64, "depth": 2, "attention": {"num_heads": 1}, "ffn": {"kind": "off"}, "causal": True},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "clip_norm": 1.0},
            "training": {
                "steps": 1750,
                "batch_size": 64,
                "evaluate_every": 350,
                "checkpoint_every": 1750,
                "steps_per_call": 50,
                "evaluate_batch_size": 1024,
            },
        }
    )
