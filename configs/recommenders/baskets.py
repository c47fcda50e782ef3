from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "task": {"name": "next_basket", "repeats": True, "half_life": 60.0},
            "model": {"width": 64, "depth": 2, "causal": True, "attention": {"num_heads": 2}, "dropout": 0.2},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 50, "schedule": "cosine"},
            "training": {"steps": 600, "batch_size": 64, "evaluate_every": 100, "checkpoint_every": 600, "steps_per_call": 20},
        }
    )
