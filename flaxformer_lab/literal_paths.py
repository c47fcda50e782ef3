"""Folders by their literal names for Orbax, TFDS and JAX, whose paths are those of etils."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from etils.epath import gpath

from flaxformer_lab.errors import ConfigError


def local_folder(path: str | Path) -> Path:
    r"""The absolute path of a folder that the lab may write checkpoints into.

    Raises:
        ConfigError: it is a URL or has a backslash: TensorStore, which writes the arrays, takes `\\` for `/`.
    """
    text = os.fspath(path)
    reason = "it has a backslash" if "\\" in text else "it is a URL" if re.match(r"\w+:/", text) else None
    if reason:
        raise ConfigError(f"--workdir={text}: {reason}; name a folder of a mounted file system, without \\")
    return Path(text).expanduser().absolute()


def take_folders_literally() -> None:
    """Lets `epath.Path("seed[1]").glob("*")` list that folder, as pathlib does.

    etils takes the folder for a part of the pattern. So in a folder `seed[1]` it finds nothing, and in `a*` also the
    files of `ab`: Orbax would write a checkpoint there that it cannot read.
    """
    gpath._GPath.glob = _glob


def _glob(folder: gpath._GPath, pattern: str) -> Iterator[gpath._GPath]:
    root = folder._path_str if folder._uri_scheme else glob.escape(folder._path_str)
    return (folder._new(found) for found in folder._backend.glob(os.path.join(root, pattern)))
