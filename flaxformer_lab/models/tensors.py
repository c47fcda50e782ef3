"""Tensors by name from safetensors: a file, or a folder of the shards of one model."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flaxformer_lab.errors import ConfigError, RunError


def load_tensors(path: Path, what: str) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of all those in a folder. what: names the path in errors.

    Raises:
        ConfigError: another kind of file, or a folder without such files, or two that have the same tensor.
        RunError: a file that cannot be read.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or files[0].suffix != ".safetensors":
        there = (
            "the folder has none" if path.is_dir() else "pickled weights (.bin, .pt) can run code when they are read"
        )
        raise ConfigError(f"{what}={path} must be a .safetensors file or a folder of them: {there}")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            found = load_file(file)
        except (OSError, SafetensorError, TypeError) as error:
            raise RunError(f"{what}={file} cannot be read: {error}") from error
        twice = tensors.keys() & found.keys()
        if twice:
            raise ConfigError(f"{what}={path}: two files have {min(twice)}; keep the shards of one model alone there")
        tensors |= found
    return tensors
