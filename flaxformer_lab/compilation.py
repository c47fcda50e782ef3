"""How programs are compiled: cached between runs, and quickly where compiling takes most of the time."""

import functools
import glob
import importlib.metadata
import importlib.util
import os
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from flaxformer_lab.cache import cache_folder

Option = str | int | bool

# LLVM's optimisation, XLA's newer loop emitter, and parallel compilation cost more than they save in a small program.
# Each flag has the first jaxlib that does not know it, or that the lab was not tested with: jaxlib aborts the process
# on an unknown flag.
BRIEFLY = {
    "--xla_backend_optimization_level=0": (0, 13),
    "--xla_cpu_use_fusion_emitters=false": (0, 11, 1),
    "--xla_cpu_parallel_codegen_split_count=1": (0, 13),
}

# The files of a plugin's devices. A plugin may be installed without devices, to compile for another machine.
DEVICE_FILES = {
    "libtpu": ("/dev/accel*", "/dev/vfio/[0-9]*"),
    "xla_cuda": ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg"),
}

# XLA's newer matmul library repacks the whole matrix in each call, which is too slow for products with few rows.
FEW_ROWS = {"xla_cpu_experimental_ynn_fusion_type": ""}

# On GPUs some operations (scatter-add) sum in the order of threads, and each process autotunes its products. With this
# option two runs give the same bytes.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


def deterministic_options(deterministic: bool = True) -> dict[str, Option] | None:
    """Options for `jax.jit` of a program that gives the same bytes each time it is compiled and run; None for none.

    CPUs and TPUs need none.
    """
    from flaxformer_lab.functional.platform import target_platform

    return DETERMINISTIC if deterministic and target_platform() == "gpu" else None


def use_compilation_cache() -> None:
    """Caches compiled programs between runs, in JAX_COMPILATION_CACHE_DIR where it is set."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def known_options(options: Mapping[str, Option]) -> dict[str, Option]:
    """Those of XLA's options for `jax.jit(compiler_options=...)` that this version knows for the target platform."""
    from flaxformer_lab.functional.platform import target_platform

    platform = target_platform()
    return {name: value for name, value in options.items() if _is_known(name, value, platform)}


@functools.cache
def _is_known(name: str, value: Option, platform: str) -> bool:
    import jax

    del platform  # a key of the cache: JAX compiles for the default device's platform
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def for_few_rows() -> dict[str, Option] | None:
    """Options for `jax.jit` of a program that multiplies a few rows by large matrices many times; None for none.

    The option is experimental; it is left out where XLA does not know it.
    """
    from flaxformer_lab.functional.platform import target_platform

    return known_options(FEW_ROWS) or None if target_platform() == "cpu" else None


def compile_at(level: int, lowered: Any) -> Any:
    """Compiles a lowered program with LLVM's optimisation level, 0 to 3, on a CPU; with JAX's default elsewhere.

    FLAXFORMER_LAB_COMPILE_LEVEL, where it is set, limits the level: 0 for tests, which run little.
    """
    from flaxformer_lab.functional.platform import target_platform

    if target_platform() != "cpu":
        return lowered.compile()
    level = min(level, int(os.environ.get("FLAXFORMER_LAB_COMPILE_LEVEL", level)))
    options = {"xla_backend_optimization_level": level, "xla_cpu_use_fusion_emitters": level > 0}
    return lowered.compile(compiler_options=known_options(options))


def compile_small_programs_briefly() -> None:
    """Makes everything compile faster and less optimised on a CPU from now on, except what `compile_at` compiles.

    Call it before JAX looks for devices; later it has no effect. XLA_FLAGS affect every device, so it does nothing
    where JAX may find another device than the CPU (see `only_cpu`). Flags that are set in XLA_FLAGS keep their values.
    """
    if not only_cpu():
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    given = {_name(flag) for flag in flags}
    flags += [flag for flag in _known_flags() if _name(flag) not in given]
    os.environ["XLA_FLAGS"] = " ".join(flags)


def available_cores() -> int:
    """How many cores this process may use; on macOS, which does not restrict a process, all that there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def only_cpu() -> bool:
    """Whether JAX can find only the CPU: JAX_PLATFORMS is cpu, or no plugin has a device.

    Does not initialise JAX's devices, which a process can do only once. A plugin whose device files are not known
    counts as having a device; JAX_PLATFORMS=cpu excludes it.
    """
    import jax

    if jax.config.jax_platforms:
        return set(jax.config.jax_platforms.split(",")) == {"cpu"}
    return not any(_may_have_device(plugin) for plugin in _device_plugins())


def _may_have_device(plugin: str) -> bool:
    patterns = [files for name, files in DEVICE_FILES.items() if plugin.rpartition(".")[2].startswith(name)]
    return not patterns or any(glob.glob(pattern) for pattern in patterns[0])


def _device_plugins() -> set[str]:
    """The plugins that JAX would load for other devices: modules, and libraries named in the environment."""
    package = importlib.util.find_spec("jax_plugins")
    modules = pkgutil.iter_modules(package.submodule_search_locations) if package else ()
    plugins = {module.name for module in modules}
    plugins |= {entry.value for entry in importlib.metadata.entry_points(group="jax_plugins")}
    if importlib.util.find_spec("libtpu"):
        plugins.add("libtpu")
    named = {os.environ.get(name, "") for name in ("TPU_LIBRARY_PATH", "PJRT_NAMES_AND_LIBRARY_PATHS")}
    return plugins | (named - {""})


def _known_flags() -> list[str]:
    version = tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("jaxlib"))[:3])
    return [flag for flag, unknown_from in BRIEFLY.items() if version < unknown_from]


def _name(flag: str) -> str:
    return flag.partition("=")[0]
