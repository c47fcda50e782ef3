"""`npz:PATH`: NumPy arrays, images or a table's rows with a label each."""

import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Shaped

from flaxformer_lab.data.own.address import Address
from flaxformer_lab.data.own.contents import (
    SOURCE_ROW,
    SPLIT_NAMES,
    Contents,
    class_label,
    complete,
    refuse_split,
    side_by_side,
    split_by_share,
)
from flaxformer_lab.errors import DataError

INPUTS = ("image", "images", "columns", "features", "x", "data", "inputs")
LABELS = ("label", "labels", "y", "target", "targets")
WAY_OUT = "write np.savez(PATH, x=images_or_rows, y=labels), or x_train, y_train, x_test, y_test"


def read(address: Address) -> Contents:
    """Examples with `image` or `columns`, by the axes of the inputs, and `label`.

    The arrays are called x and y, or by one of the names above; with a split before or after it (`x_train`,
    `test_images`) they are that split's. Labels are whole numbers, or texts, which become classes in their order.

    Raises:
        DataError: the file is no npz of such arrays; names the array.
    """
    arrays, unused = _arrays(address)
    inputs = {split: parts["x"] for split, parts in arrays.items()}
    labels = {split: parts["y"] for split, parts in arrays.items()}
    whole, targets = np.concatenate(list(inputs.values())), np.concatenate(list(labels.values()))
    feature = "columns" if whole.ndim == 2 else "image"
    kind = tfds.features.Scalar(targets.dtype.type)
    if targets.dtype.kind == "U":
        kind, targets = class_label(address, np.unique(targets).tolist()), np.unique(targets, return_inverse=True)[1]

    sizes = {split: len(values) for split, values in inputs.items()}
    if list(sizes) == [""]:
        rows = split_by_share(address, len(whole))
    else:
        refuse_split(address, sizes)
        rows = complete(address, side_by_side(sizes))
    row_in_array = np.concatenate([np.arange(size) for size in sizes.values()])

    def examples(chosen: np.ndarray) -> Iterator[dict[str, Any]]:
        for row in chosen:
            yield {feature: whole[row], "label": targets[row].item(), SOURCE_ROW: int(row_in_array[row])}

    features = {
        feature: tfds.features.Tensor(shape=whole.shape[1:], dtype=whole.dtype.type),
        "label": kind,
        SOURCE_ROW: tfds.features.Scalar(np.int32),
    }
    return Contents.of_rows(features, examples, rows, {"unused": unused} if unused else {})


def _arrays(address: Address) -> tuple[dict[str, dict[str, Shaped[np.ndarray, "rows ..."]]], list[str]]:
    """`x` and `y` of each split, whose name is empty where the file names none; and the names of other arrays."""
    found: dict[str, dict[str, np.ndarray]] = {}
    names: dict[tuple[str, str], str] = {}
    unused = []
    if not zipfile.is_zipfile(address.path):
        raise DataError(f"{address.source} is no npz file; {WAY_OUT}")
    try:
        with np.load(address.path, allow_pickle=False) as stored:
            for name in stored.files:
                place = _place(name)
                if place is None:
                    unused.append(name)
                    continue
                if place in names:
                    raise DataError(f"{address.source}: {names[place]} and {name} are both {place[1]}; keep one")
                names[place] = name
                try:
                    values = stored[name]
                except ValueError as error:
                    raise DataError(f"{address.source}: array {name} cannot be read ({error}); {WAY_OUT}") from error
                found.setdefault(place[0], {})[place[1]] = _checked(address, name, place[1], values)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{address.source} is damaged ({error}); {WAY_OUT}") from error
    for split, parts in found.items():
        if set(parts) != {"x", "y"}:
            lacking = "labels" if "x" in parts else "inputs"
            raise DataError(f"{address.source}: {lacking} are missing beside {names[split, *parts]}; {WAY_OUT}")
        if len(parts["x"]) != len(parts["y"]):
            raise DataError(
                f"{address.source}: {names[split, 'x']} has {len(parts['x'])} rows, but {names[split, 'y']} "
                f"{len(parts['y'])}; a row needs one label"
            )
    if not found:
        raise DataError(f"{address.source} has the arrays {', '.join(unused) or 'none'}, no inputs; {WAY_OUT}")
    if "" in found and len(found) > 1:
        others = ", ".join(filter(None, found))
        raise DataError(f"{address.source}: {names['', 'x']} belongs to no split, beside {others}; {WAY_OUT}")
    for part in ("x", "y"):
        kinds = {(parts[part].shape[1:], _kind(parts[part])): split for split, parts in found.items()}
        if len(kinds) > 1:
            shown = " but ".join(
                f"{names[split, part]} has shape {found[split][part].shape}, {found[split][part].dtype}"
                for split in kinds.values()
            )
            raise DataError(f"{address.source}: {shown}; the splits must be alike")
    return found, unused


def _place(name: str) -> tuple[str, str] | None:
    """The split, empty for none, and x or y, for the name of an array; None for another array."""
    words = name.lower().split("_")
    split = ""
    for place in (0, -1):
        if len(words) > 1 and words[place] in SPLIT_NAMES:
            split = SPLIT_NAMES[words.pop(place)]
    base = "_".join(words)
    return (split, "x") if base in INPUTS else (split, "y") if base in LABELS else None


def _checked(address: Address, name: str, part: str, values: np.ndarray) -> Shaped[np.ndarray, "rows ..."]:
    """The array as it is stored: inputs of numbers, labels of one axis."""
    where = f"{address.source}: array {name} has shape {values.shape} ({values.dtype})"
    if part == "x":
        if values.ndim not in (2, 3, 4) or values.dtype.kind not in "biuf" or 0 in values.shape:
            raise DataError(
                f"{where}; inputs are numbers [rows, columns], or images [images, rows, columns], also with channels"
            )
        if values.dtype.kind == "f":
            return values.astype(np.float32)
        if values.dtype.itemsize < 4 or values.dtype == np.int32:
            return values
        if not np.iinfo(np.int32).min <= values.min() <= values.max() <= np.iinfo(np.int32).max:
            raise DataError(f"{where} and values beyond 32 bits; store it as floats")
        return values.astype(np.int32)
    if values.shape[1:] == (1,):
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biufUS":
        raise DataError(f"{where}; labels are one number or text a row")
    return values.astype({"f": np.float32, "U": str, "S": str}.get(values.dtype.kind, np.int64))


def _kind(values: np.ndarray) -> str:
    return values.dtype.kind if values.dtype.kind == "U" else str(values.dtype)
