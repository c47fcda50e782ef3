"""A laboratory for one question: how does mixing across feature dimensions change what a Transformer learns?

From Python, a finished run is opened by its folder:

    import flaxformer_lab

    run = flaxformer_lab.load_run("runs/digits")
    logits = run.predict(images)

Importing the package imports nothing else: `load_run`, and JAX with it, is loaded when first asked for (PEP 562).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flaxformer_lab.evaluate import load_run

__all__ = ["__version__", "load_run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "load_run":
        from flaxformer_lab.evaluate import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
