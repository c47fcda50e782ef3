"""State of the Union speeches, character by character: a causal Transformer of about 1M parameters.

Trained on the years before 2000, validated on 2000 to 2010, tested on 2011 to 2021; 3.1M characters are seen.

Command: python train.py --config=configs/speeches.py
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 9 minutes.
Result: validation loss 1.3282 nats per character (accuracy 0.5970), test loss 1.4428 (0.5774), 1,007,104 parameters.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The language recipe."""
    return ConfigDict(
        {
            "seed": 0,
            "task": {
                "name": "language_modelling",
                "dataset": "lab_speeches",
                "tokenizer": "characters",
                "objective": "next_token",
                "sequence_length": 128,
            },
            "model": {
                "width": 128,
                "depth": 5,
                "attention": {"num_heads": 4},
                "ffn": {"kind": "gated", "activation": "silu", "expansion": 8 / 3},
                "norm": {"kind": "rmsnorm"},
                "position": "rotary",
                "bias": False,
                "causal": True,
            },
            "optimizer": {
                "name": "muon",
                "learning_rate": 1e-2,
                "schedule": "linear",
                "warmup_steps": 50,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
            },
            "training": {
                "steps": 1500,
                "batch_size": 16,
                "evaluate_every": 500,
                "evaluate_batch_size": 64,
                "checkpoint_every": 500,
                "steps_per_call": 10,
            },
        }
    )
