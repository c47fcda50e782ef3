"""How programs are compiled: kept between runs, and with little optimisation where compiling is most of the time."""

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

# LLVM's optimisation, XLA's newer way of emitting loops, and compiling a program in parts that run side by side all
# cost more in a small program than they bring. Beside each flag stands the first jaxlib that does not know it, or the
# first that the lab was not tested with: jaxlib ends the process for a flag that it does not know.
BRIEFLY = {
    "--xla_backend_optimization_level=0": (0, 13),
    "--xla_cpu_use_fusion_emitters=false": (0, 11, 1),
    "--xla_cpu_parallel_codegen_split_count=1": (0, 13),
}

# How the devices of a plugin show. A plugin may be installed without any, to compile for a machine that has them.
DEVICE_FILES = {
    "libtpu": ("/dev/accel*", "/dev/vfio/[0-9]*"),
    "xla_cuda": ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg"),
}

# XLA's newer library of products packs all of a matrix anew in each call, which a few rows beside it do not repay.
FEW_ROWS = {"xla_cpu_experimental_ynn_fusion_type": ""}

# On GPUs some operations (scatter-add) sum in the order in which threads come, and each process finds the fastest form
# of a product by trying. With this option two runs give the same bytes.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


def deterministic_options(deterministic: bool = True) -> dict[str, Option] | None:
    """Options for `jax.jit` of a program that gives the same bytes each time it is compiled and run; None for none.

    CPUs and TPUs need none.
    """
    from flaxformer_lab.functional.platform import target_platform

    return DETERMINISTIC if deterministic and target_platform() == "gpu" else None


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs; JAX_COMPILATION_CACHE_DIR, where it is set, says where."""
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

    del platform  # of the default device, for which JAX compiles; it tells the cached answers apart
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def for_few_rows() -> dict[str, Option] | None:
    """Options for `jax.jit` of a program that multiplies a few rows by large matrices, again and again; None for none.

    The option is an experimental one, so a version of XLA that does not know it does without.
    """
    from flaxformer_lab.functional.platform import target_platform

    return known_options(FEW_ROWS) or None if target_platform() == "cpu" else None


def compile_at(level: int, lowered: Any) -> Any:
    """Compiles a lowered program with LLVM's optimisation level, 0 to 3, on a CPU; elsewhere with all of it.

    FLAXFORMER_LAB_COMPILE_LEVEL, where it is set, is the highest that is taken: 0 for tests, which run little.
    """
    from flaxformer_lab.functional.platform import target_platform

    if target_platform() != "cpu":
        return lowered.compile()
    level = min(level, int(os.environ.get("FLAXFORMER_LAB_COMPILE_LEVEL", level)))
    options = {"xla_backend_optimization_level": level, "xla_cpu_use_fusion_emitters": level > 0}
    return lowered.compile(compiler_options=known_options(options))


def compile_small_programs_briefly() -> None:
    """Makes all that is compiled from now on compile briefly on a CPU, but for what `compile_at` compiles.

    To be called before JAX looks for devices; later it has no effect. XLA_FLAGS reach every device, so it has no effect
    either where JAX may find another device than the CPU (see `only_cpu`). A flag that XLA_FLAGS has keeps its value.
    """
    if not only_cpu():
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    given = {_name(flag) for flag in flags}
    flags += [flag for flag in _known_flags() if _name(flag) not in given]
    os.environ["XLA_FLAGS"] = " ".join(flags)


def only_cpu() -> bool:
    """Whether JAX can find no device but the CPU: it is told to look for no other, or has no plugin with a device.

    It does not look for devices, which a process may do only once. A plugin whose devices are not known to show as
    files counts as having one: JAX_PLATFORMS=cpu says that it is not meant.
    """
    import jax

    if jax.config.jax_platforms:
        return set(jax.config.jax_platforms.split(",")) == {"cpu"}
    return not any(_may_have_device(plugin) for plugin in _device_plugins())


def _may_have_device(plugin: str) -> bool:
    patterns = [files for name, files in DEVICE_FILES.items() if plugin.rpartition(".")[2].startswith(name)]
    return not patterns or any(glob.glob(pattern) for pattern in patterns[0])


def _device_plugins() -> set[str]:
    """What JAX would load for other devices than the CPU: modules, and libraries that the environment names."""
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
