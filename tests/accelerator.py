"""Makes a CPU's arrays behave like those of a GPU or a TPU where the two differ: in being read.

The arrays of a CPU are the host's own memory. JAX hands out views of them, `jax.transfer_guard` never fires, and a view
keeps a donated buffer alive. On an accelerator reading is a transfer to the host, which the guard sees, and a copy.

`python tests/accelerator.py train.py --config=...` runs a command like that.
"""

import contextlib
import ctypes
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from jax._src.array import ArrayImpl
from jax._src.lib import guard_lib


@contextlib.contextmanager
def reads_are_transfers() -> Iterator[None]:
    """Reading an array copies it, and asks `jax.transfer_guard` first."""
    value = ArrayImpl._value.fget

    def read(array: ArrayImpl) -> np.ndarray:
        array._check_if_deleted()
        if array._npy_value is None:  # a value that was copied before is on the host
            _require_transfer(array)
            copy = np.array(value(array))
            copy.flags.writeable = False
            array._npy_value = copy
        return array._npy_value

    def copy_to_host_async(array: ArrayImpl) -> None:
        read(array)

    replaced = {"_value": property(read), "copy_to_host_async": copy_to_host_async}
    with _without_buffer_protocol(ArrayImpl), mock.patch.multiple(ArrayImpl, **replaced):
        yield


def _require_transfer(array: ArrayImpl) -> None:
    """What jaxlib asks before it copies an array of an accelerator to the host."""
    here, everywhere = guard_lib.thread_local_state(), guard_lib.global_state()
    level = here.device_to_host or everywhere.device_to_host
    levels = guard_lib.TransferGuardLevel
    if level == levels.DISALLOW_EXPLICIT or (level == levels.DISALLOW and not here.explicit_device_get):
        raise jax.errors.JaxRuntimeError(
            f"INVALID_ARGUMENT: Disallowed device-to-host transfer: shape={array.shape}, dtype={array.dtype}"
        )


@contextlib.contextmanager
def _without_buffer_protocol(kind: type) -> Iterator[None]:
    """NumPy asks `kind` for `__array__` instead of its memory, which an accelerator's array does not offer either."""
    get_slot, getbuffer = ctypes.pythonapi.PyType_GetSlot, 1  # Py_bf_getbuffer of CPython's typeslots.h
    get_slot.restype, get_slot.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_int)
    words = (ctypes.c_void_p * (type(kind).__basicsize__ // ctypes.sizeof(ctypes.c_void_p))).from_address(id(kind))
    function = get_slot(kind, getbuffer)
    (place,) = [number for number, word in enumerate(words) if word == function]
    words[place] = None
    try:
        yield
    finally:
        words[place] = function


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    with reads_are_transfers():
        runpy.run_path(sys.argv[0], run_name="__main__")
