"""The formats of an exported model, and reading one: `load_exported(path)`.

An export is a file and its description beside it, `FILE.json`: inputs, outputs, where it comes from, and its size and
SHA-256, which are checked when it is read.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.export import onnx, stablehlo, weights
from flaxformer_lab.export.forward import Spec, Tree, check_arrays
from flaxformer_lab.training.folder import read_json


class Format(NamedTuple):
    """How one kind of file is written and read: `read` gives the shapes of the model's inputs, and the model.

    precisions: those of the parameters. Where there are several, `encode` takes `precision`, and `calibration`: batches
        of inputs to measure scales on, or None.
    latency: the seconds of one call of a file with these inputs on one thread.
    float32: files compute in float32 whatever the run does.
    """

    suffix: str
    encode: Callable[..., bytes]
    read: Callable[[Path], tuple[Spec, Callable[..., Tree]]]
    platforms: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("float32",)
    latency: Callable[[Path, dict[str, np.ndarray]], float] | None = None
    float32: bool = False


FORMATS = {
    "stablehlo": Format(".stablehlo", stablehlo.encode, stablehlo.read, stablehlo.PLATFORMS),
    "onnx": Format(".onnx", onnx.encode, onnx.read, precisions=onnx.PRECISIONS, latency=onnx.latency, float32=True),
    "safetensors": Format(".safetensors", weights.encode, weights.read),
}


@dataclass(frozen=True, repr=False)
class Exported:
    """A model from a file.

    description: what FILE.json says: `inputs`, `outputs`, `classes`, `step`, `parity` ...
    spec: shapes and types of the model's inputs by name; the first axis, the batch, may have any size.
    """

    path: Path
    description: dict[str, Any]
    spec: Spec
    function: Callable[..., Tree]

    def __repr__(self) -> str:
        return f"Exported({self.path.name}: {', '.join(self.spec)})"

    def predict(self, raw: Any) -> Tree:
        """Outputs for examples, as `Run.predict` gives them; a text must be encoded (its symbols are in `description`).

        raw: an array, or arrays by name where the model has several inputs. Numbers are not checked: a symbol that is
            unknown or a NaN in a column gives NaN, an image of another range a wrong output.

        Raises:
            ConfigError: arrays of other names, shapes or kinds.
        """
        arrays = dict(raw) if isinstance(raw, Mapping) else {next(iter(self.spec)): raw}
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        check_arrays(arrays, self.spec)
        return self.function(**{name: _cast(name, array, self.spec[name].dtype) for name, array in arrays.items()})


def load_exported(path: str | Path) -> Exported:
    """The model in a file that `Run.export` or `python -m flaxformer_lab.export` wrote; no code in it is run.

    Raises:
        ConfigError: the file is of no known format.
        RunError: it or FILE.json is missing or damaged, or they do not belong together.
    """
    path = Path(path).expanduser().absolute()
    found = next((each for each in FORMATS.values() if each.suffix == path.suffix), None)
    if found is None:
        *first, last = (each.suffix for each in FORMATS.values())
        raise ConfigError(f"{path} is no exported model; it ends in {', '.join(first)} or {last}")
    if not path.is_file():
        raise RunError(f"{path} is not a file; python -m flaxformer_lab.export writes one")
    description = read_json(description_of(path))
    if fingerprint(path) != {name: description.get(name) for name in ("bytes", "sha256")}:
        raise RunError(
            f"{path} is not the file that {description_of(path).name} describes: its size or SHA-256 is another; "
            "export it again"
        )
    return Exported(path, description, *found.read(path))


def description_of(path: Path) -> Path:
    """The file that describes an exported one."""
    return path.with_name(f"{path.name}.json")


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Whole numbers keep their values."""
    cast = array.astype(dtype)
    if array.dtype.kind != "f" and not np.array_equal(cast, array):
        raise ConfigError(f"{name} has values from {array.min()} to {array.max()}, beyond its type, {dtype}")
    return cast
