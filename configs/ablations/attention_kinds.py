"""What each kind of attention learns: associative recall (MQAR), speeches and handwritten digits.

benchmarks/attention_length.py measures what each costs against length.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/attention_kinds.py --workdir=runs/attention_kinds
Variants to try: --config.match=parameters
Hardware: 2 cores of an AMD EPYC, no accelerator.
Result (docs/results/attention_kinds.md): recall needs weights that depend on contents: softmax 1.000, linear 1.000,
lightning 0.998; with a window of 8 0.714, static 0.306, mean 0.277. Accuracy on the speeches' next character: a window
of 8 0.421, softmax 0.391, static 0.382, lightning 0.359, linear 0.327. On the digits no kind differs from softmax.
"""

from ml_collections import ConfigDict

WINDOW = {"model": {"attention": {"window": 8}}}
CAUSAL = {
    "linear": "linear_attention",
    "lightning": "lightning_attention",
    "mean": "mean_attention",
    "static": "static_attention",
    "softmax, window of 8": WINDOW,
    "off": "attention_off",
}
BOTH_WAYS = {"channel": "channel_attention"}  # a causal channel attention does not exist


def _training(steps: int, evaluations: int, evaluate_batch_size: int, **more: int) -> dict:
    return {
        "steps": steps,
        "evaluate_every": steps // evaluations,
        "checkpoint_every": steps,
        "evaluate_batch_size": evaluate_batch_size,
        **more,
    }


def get_config() -> ConfigDict:
    """The ablation."""
    return ConfigDict(
        {
            "question": "What does each kind of attention learn?",
            "tasks": {
                "mqar": {
                    "recipe": "../probes/mqar.py",
                    "overrides": {
                        "task": {"vocabulary": 32, "sequence_length": 32, "evaluation_examples": 512},
                        "model": {"width": 32},
                        "training": _training(800, 8, 512, steps_per_call=50),
                    },
                    "threshold": 0.9,
                    "only": ("baseline", *CAUSAL),
                },
                "speeches": {
                    "recipe": "../speeches.py",
                    "overrides": {
                        "task": {"sequence_length": 64},
                        "model": {"width": 48, "depth": 2},
                        "training": _training(200, 2, 256, steps_per_call=50),
                    },
                    "threshold": 0.4,
                    "only": ("baseline", *CAUSAL),
                },
                "digits": {
                    "recipe": "../digits.py",
                    "overrides": {"model": {"width": 32, "depth": 2}, "training": _training(300, 5, 300)},
                    "threshold": 0.9,
                },
            },
            "variants": CAUSAL | BOTH_WAYS,
            "learning_rates": (0.003, 0.01, 0.03),
            "seeds": (0, 1, 2, 3, 4),
        }
    )
