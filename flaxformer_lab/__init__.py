"""A laboratory for one question: how does mixing across feature dimensions change what a Transformer learns?

What the commands do, in Python (docs/python.md):

    from flaxformer_lab import ablate_head, load_config, train

    run = train(load_config("configs/digits.py", {"training.steps": 200}), "runs/digits")
    outputs, cache = run.run_with_cache(images)
    run.with_hooks(ablate_head(0, 1)).evaluate("test")

Importing the package imports nothing else: each name, and JAX with it, is loaded when first asked for (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING

from flaxformer_lab.version import __version__

if TYPE_CHECKING:
    from flaxformer_lab.ablation.variants import VARIANTS
    from flaxformer_lab.api import (
        ablate,
        evaluate,
        load_config,
        load_pretrained,
        measure,
        pretrained_config,
        save_pretrained,
    )
    from flaxformer_lab.export.formats import load_exported
    from flaxformer_lab.models.conversion import from_huggingface
    from flaxformer_lab.models.hooks import ablate_ffn, ablate_head
    from flaxformer_lab.registry import register
    from flaxformer_lab.run import load_run, train

__all__ = [
    "VARIANTS",
    "__version__",
    "ablate",
    "ablate_ffn",
    "ablate_head",
    "evaluate",
    "from_huggingface",
    "load_config",
    "load_exported",
    "load_pretrained",
    "load_run",
    "measure",
    "pretrained_config",
    "register",
    "save_pretrained",
    "train",
]

_MODULES = {
    "ablation.variants": ["VARIANTS"],
    "api": [
        "ablate",
        "evaluate",
        "load_config",
        "load_pretrained",
        "measure",
        "pretrained_config",
        "save_pretrained",
    ],
    "export.formats": ["load_exported"],
    "models.conversion": ["from_huggingface"],
    "models.hooks": ["ablate_ffn", "ablate_head"],
    "registry": ["register"],
    "run": ["load_run", "train"],
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
