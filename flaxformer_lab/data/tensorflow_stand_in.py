"""The functions of TensorFlow that TFDS calls while it builds a data set, for machines without TensorFlow.

TFDS writes and reads array_record with NumPy, but its download manager and many of its builders open files with
`tf.io.gfile`, and compress images with `tf.image.encode_png`, without loss. These functions replace them, only for TFDS
and only inside `tensorflow_stand_in()`. Any other use of TensorFlow by a builder is an ImportError.
"""

import contextlib
import glob
import importlib.util
import io
import os
import shutil
import sys
import types
from collections.abc import Iterator

import numpy as np
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.utils import lazy_imports_utils


class _Namespace:
    """A module of TensorFlow with only the given attributes."""

    def __init__(self, path: str, **attributes):
        self.__dict__.update(attributes, _path=path)

    def __getattr__(self, name: str):
        raise ImportError(f"{self._path}.{name} is needed, which TensorFlow alone has", name="tensorflow")


class _NoErrors:
    """Replaces `tf.errors`: TensorFlow raises nothing here, so each `except tf.errors.X` catches nothing."""

    def __getattr__(self, name: str) -> tuple:
        return ()


class _Tensor(bytes):
    def numpy(self) -> bytes:
        return bytes(self)


def _encode_png(image: np.ndarray) -> _Tensor:
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, format="png")
    return _Tensor(content.getvalue())


def _open(path: str | os.PathLike, mode: str = "r"):
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


def _copy(source: str | os.PathLike, target: str | os.PathLike, overwrite: bool = False) -> None:
    if not overwrite and os.path.exists(target):
        raise FileExistsError(target)
    shutil.copyfile(source, target)


_GFILE = _Namespace(
    "tf.io.gfile",
    GFile=_open,
    copy=_copy,
    exists=os.path.exists,
    glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
    isdir=os.path.isdir,
    listdir=os.listdir,
    makedirs=lambda path: os.makedirs(path, exist_ok=True),
    walk=os.walk,
)
_TENSORFLOW = _Namespace(
    "tf",
    compat=_Namespace("tf.compat", as_text=lambda text: text.decode() if isinstance(text, bytes) else text),
    errors=_NoErrors(),
    executing_eagerly=lambda: True,
    image=_Namespace("tf.image", encode_png=_encode_png),
    io=_Namespace("tf.io", gfile=_GFILE),
)


@contextlib.contextmanager
def tensorflow_stand_in() -> Iterator[None]:
    """Gives TFDS these functions in place of TensorFlow, unless TensorFlow is installed."""
    if importlib.util.find_spec("tensorflow"):
        yield
        return
    # Not in sys.modules, where other libraries would take it for TensorFlow: only in TFDS's lazy import.
    lazy_module = vars(lazy_imports_utils.tensorflow)
    lazy_module["_module"] = _TENSORFLOW
    try:
        yield
    finally:
        lazy_module.pop("_module", None)


class _MissingModule(types.ModuleType):
    """Can be imported, but not used."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name} is needed", name=self.__name__)


def import_all_builders() -> None:
    """Lets TFDS find all of its data sets where h5py is missing, which a few of them need.

    TFDS imports its builders in one go and stops at the first import that fails: without h5py, half of them, like iris
    and wiki40b, would be no data sets of TFDS. The few end with an ImportError that names h5py when they are prepared.
    """
    if importlib.util.find_spec("h5py"):
        return
    sys.modules["h5py"] = _MissingModule("h5py")
    try:
        registered._import_legacy_builders()
    finally:
        del sys.modules["h5py"]
