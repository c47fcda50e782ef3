"""Fashion-MNIST, 28 x 28 pixels, classified by a vision Transformer of 0.2M parameters.

TFDS downloads the data; `python tools/fetch_fashion_mnist.py` takes it from Debian's package instead.

Command: python train.py --config=configs/fashion_mnist.py
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: TIME
Result: RESULT
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "task": {
                "name": "image_classification",
                "dataset": "fashion_mnist",
                "patch_size": 4,
                "shift": 1,
                "flip": True,
            },
            "model": {
                "width": 80,
                "depth": 3,
                "attention": {"num_heads": 4},
                "ffn": {"activation": "gelu_tanh", "expansion": 3.0},
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-3,
                "schedule": "linear",
                "warmup_steps": 100,
                "weight_decay": 0.05,
                "clip_norm": 1.0,
            },
            "training": {
                "steps": 1600,
                "batch_size": 128,
                "evaluate_every": 400,
                "checkpoint_every": 1600,
                "steps_per_call": 40,
                "evaluate_batch_size": 1000,
            },
        }
    )
