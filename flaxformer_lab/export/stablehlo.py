"""StableHLO: the whole model as a program for any platform, with a batch of any size and its parameters as constants.

Plain JAX calls it: `jax.export.deserialize(Path(file).read_bytes()).call(image=images)`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.export
from jaxtyping import Array

from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.export.forward import Forward, Spec, Tree
from flaxformer_lab.functional.platform import portable_forms

PLATFORMS = ("cpu", "cuda", "tpu")
MOST_BYTES = 2**31 - 2**24  # the container (FlatBuffers) ends at 2 GiB; the rest is for the program
CALLBACK = re.compile(r"\b(\w*callback|debug_print)\[")
# The only call out of a program that is not arithmetic: it compares the sizes of arguments.
HARMLESS = "custom_call @shape_assertion("


def encode(forward: Forward) -> bytes:
    """The bytes of the file.

    The program has the forms of a CPU, which are made of XLA's own operations alone and run on all of PLATFORMS,
    wherever it is exported.

    Raises:
        ConfigError: a part of the model calls Python, does not allow a batch of any size, or does not run on all
            platforms; or the parameters are too large for one file.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((forward.params, forward.model_state)))
    if size > MOST_BYTES:
        raise ConfigError(
            f"--format=stablehlo holds at most {MOST_BYTES:,} bytes of parameters, not {size:,}; choose safetensors"
        )
    (batch,) = jax.export.symbolic_shape("batch")
    spec = {name: jax.ShapeDtypeStruct((batch, *like.shape[1:]), like.dtype) for name, like in forward.spec.items()}

    @jax.jit
    def program(**arrays: Array) -> Tree:
        return forward(**arrays)

    with portable_forms(), _without_source_lines():
        try:
            callback = CALLBACK.search(str(program.trace(**spec).jaxpr))
            content = b"" if callback else bytes(jax.export.export(program, platforms=PLATFORMS)(**spec).serialize())
        except Exception as error:  # a user's part may fail in any way
            raise ConfigError(
                f"--format=stablehlo: this model cannot become a program for {', '.join(PLATFORMS)} with a batch of "
                f"any size: {type(error).__name__}: {error}; --format=safetensors keeps its weights"
            ) from error
    if callback:
        raise ConfigError(
            f"--format=stablehlo: this model calls Python ({callback[1]}), which a file cannot do; take the call out "
            "of the model, or use --format=safetensors for its weights"
        )
    return content


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Programs do not say from which files they were traced: a third of a small one, and folders of this machine."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def read(path: Path) -> tuple[Spec, Callable[..., Tree]]:
    """The arguments of a file's program, by name, and the program.

    Raises:
        RunError: the file is damaged, of another kind, or calls anything outside of XLA.
    """
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        arguments, spec = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        text = exported.mlir_module()
    except Exception as error:  # bytes that are no program fail in any way
        raise RunError(f"{path} is damaged, or no program of StableHLO: {type(error).__name__}: {error}") from error
    if arguments or not isinstance(spec, dict):
        raise RunError(f"{path} takes {len(arguments)} arguments without a name, so the lab did not write it")
    if text.count("custom_call") != text.count(HARMLESS):
        raise RunError(f"{path} calls a function outside of XLA, which no file of the lab does; it is not run")
    return spec, jax.jit(exported.call)
