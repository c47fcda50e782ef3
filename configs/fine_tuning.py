"""Fine-tunes a pretrained model from its folder: whole, its head alone, or by LoRA (docs/pretrained.md).

The model follows from the folder; what it is trained on follows from its head: a language model takes lab_speeches.

Command: python train.py --config=configs/fine_tuning.py --config.task.folder=models/gpt2
Head alone: --config.training.train_only=head --config.optimizer.learning_rate=1e-3
LoRA: --config.training.lora_rank=8 --config.optimizer.learning_rate=1e-3
Your data: --config.task.dataset=text:PATH, or as docs/pretrained.md says for other heads
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "task": {"name": "pretrained"},
            "optimizer": {
                "learning_rate": 5e-5,
                "schedule": "linear",
                "warmup_steps": 20,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
            },
            "training": {
                "steps": 300,
                "batch_size": 8,
                "evaluate_every": 100,
                "evaluate_batch_size": 32,
                "checkpoint_every": 100,
                "steps_per_call": 5,
            },
        }
    )
