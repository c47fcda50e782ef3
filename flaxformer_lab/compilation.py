"""How programs are compiled: kept between runs, and with little optimisation where compiling is most of the time."""

import functools
import os
from typing import Any

from flaxformer_lab.cache import cache_folder

# LLVM's optimisation, XLA's newer way of emitting loops, and compiling a program in parts that run side by side all
# cost more in a small program than they bring.
BRIEFLY = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


# XLA's newer library of products packs all of a matrix anew in each call, which a few rows beside it do not repay.
FEW_ROWS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def for_few_rows() -> dict[str, str] | None:
    """Options for `jax.jit` of a program that multiplies a few rows by large matrices, again and again; None for none.

    The option is an experimental one, so a version of XLA that does not know it does without.
    """
    import jax

    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=FEW_ROWS)()
    except jax.errors.JaxRuntimeError:
        return None
    return FEW_ROWS


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs; JAX_COMPILATION_CACHE_DIR, where it is set, says where."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def compile_small_programs_briefly() -> None:
    """Makes all that is compiled from now on compile briefly on a CPU, but for what `compile_at` compiles.

    To be called before JAX looks for devices; later it has no effect.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if BRIEFLY not in given:
        os.environ["XLA_FLAGS"] = f"{given} {BRIEFLY}".strip()


def compile_at(level: int, lowered: Any) -> Any:
    """Compiles a lowered program with LLVM's optimisation level, 0 to 3, on a CPU; elsewhere with all of it.

    FLAXFORMER_LAB_COMPILE_LEVEL, where it is set, is the highest that is taken: 0 for tests, which run little.
    """
    import jax

    if jax.default_backend() != "cpu":
        return lowered.compile(compiler_options={"xla_backend_optimization_level": 3})
    level = min(level, int(os.environ.get("FLAXFORMER_LAB_COMPILE_LEVEL", level)))
    options = {"xla_backend_optimization_level": level, "xla_cpu_use_fusion_emitters": level > 0}
    return lowered.compile(compiler_options=options)
