"""P7: the rank residual of tokens at initialisation; nothing is trained.

Without skip connections the rank residual falls doubly exponentially with depth (Dong et al. 2021); with them it does
not. Meant for `tools/probe_table.py` and for measures of fresh models; trained, it is a delay by one token.

Command: make probes ARGS=P7
Hardware: 2 cores of an AMD EPYC, no accelerator.
Time: 11 s.
Result: -log of the rank residual by layer 0.36, 1.64, 5.48, 15.3; with skip connections 0.03 to 0.27.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The probe."""
    return ConfigDict(
        {
            "task": {"name": "delay", "tokens": 32, "features": 64, "embedding": "identity", "head": "identity"},
            "model": {
                "width": 64,
                "depth": 6,
                "attention": {"num_heads": 4},
                "ffn": {"kind": "off"},
                "skip": {"attention": False, "ffn": False},
                "position": "off",
            },
            "training": {"steps": 100, "batch_size": 64},
        }
    )
