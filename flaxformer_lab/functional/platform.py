"""Where the program that is being traced will run, which is not always where it is traced."""

from typing import Any

import jax

# Part of the key by which JAX keeps what it has traced, which no other global value is.
_portable = jax.make_user_context(False)
_counted = jax.make_user_context(False)


def portable_forms() -> Any:
    """A context for programs that run on every platform: those of a CPU, which call no kernel and no library."""
    return _portable(True)


def in_portable_forms() -> bool:
    """Whether the program that is being traced is one for every platform."""
    return _portable.value


def counted_forms() -> Any:
    """A context for programs whose operations are counted: loops have a known length."""
    return _counted(True)


def in_counted_forms() -> bool:
    """Whether the operations of the program that is being traced are counted."""
    return _counted.value


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`: the platform of the mesh in use, else of `jax.default_device`, else JAX's default.

    A mesh knows its devices while a program is traced for them, also when it is compiled on a machine without any
    (`jax.experimental.topologies`). In `portable_forms` it is `cpu`.
    """
    if _portable.value:
        return "cpu"
    device = _target_device()
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def only_on_cpu() -> bool:
    """Whether the program will run on a CPU and nowhere else: not in `portable_forms`."""
    return not _portable.value and target_platform() == "cpu"


def target_device_kind() -> str:
    """The model name of the target device, like `NVIDIA H100 80GB HBM3`; in `portable_forms` that of no device."""
    if _portable.value:
        return "any device"
    device = _target_device()
    return (jax.devices()[0] if device is None else device).device_kind


def _target_device():
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.config.jax_default_device
    if isinstance(device, str):  # `jax.default_device("cpu")` names a platform
        device = jax.devices(device)[0]
    return device
