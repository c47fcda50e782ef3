"""`images:FOLDER`: image files, a subfolder for each class."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flaxformer_lab.data.image_files import SUFFIXES, read_image
from flaxformer_lab.data.own.address import Address
from flaxformer_lab.data.own.contents import (
    Contents,
    class_label,
    complete,
    files_below,
    refuse_split,
    side_by_side,
    split_by_share,
    split_folders,
)
from flaxformer_lab.errors import DataError

LAYOUT = "write FOLDER/CLASS/IMAGE, or FOLDER/train/CLASS/IMAGE and so for test and validation"


def read(address: Address) -> Contents:
    """Examples with `image`, `label` and `file`, its path in the folder; the sorted subfolders are the classes.

    Images are kept in their own sizes, grey unless one of them is coloured. Subfolders train, validation and test that
    have the classes in them keep their splits.

    Raises:
        DataError: the folder has no such subfolders, or a file cannot be used; names it.
    """
    root = address.path
    if not root.is_dir():
        raise DataError(f"{address.source} is no folder; {LAYOUT}")
    by_split = split_folders(address, SUFFIXES)
    found = {name: _by_class(address, folder) for name, folder in (by_split or {"": root}).items()}
    classes = list(found.get("train", found.get("")))
    for name, images in found.items():
        for unknown in [each for each in images if each not in classes][:1]:
            raise DataError(f"{address.source}: {name} has the class {unknown}, which train lacks")

    files = [(file, classes.index(each)) for images in found.values() for each in images for file in images[each]]
    if by_split:
        refuse_split(address, found)
        rows = complete(address, side_by_side({name: sum(map(len, images.values())) for name, images in found.items()}))
    else:
        rows = split_by_share(address, len(files))
    shape, dtype, metadata = _survey(address, [file for file, _ in files])

    def examples(chosen: np.ndarray) -> Iterator[dict[str, Any]]:
        for row in chosen:
            file, label = files[row]
            image = read_image(file)
            image = np.broadcast_to(image, (*image.shape[:2], shape[-1]))
            yield {"image": image.astype(dtype), "label": label, "file": str(file.relative_to(root))}

    features = {
        "image": tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.ZLIB),
        "label": class_label(address, classes),
        "file": tfds.features.Text(),
    }
    return Contents.of_rows(features, examples, rows, metadata)


def _subfolders(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _by_class(address: Address, folder: Path) -> dict[str, list[Path]]:
    """The images of each class."""
    names = _subfolders(folder)
    loose = [each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES and not each.name.startswith(".")]
    if not names or loose:
        shown = f"{loose[0].name} in {folder} is in no subfolder" if loose else f"{folder} has no subfolder"
        raise DataError(f"{address.source}: {shown}, whose name is the class; {LAYOUT}")
    found, others = {}, []
    for name in names:
        files = files_below(folder / name)
        found[name] = [file for file in files if file.suffix.lower() in SUFFIXES]
        others += [file for file in files if file.suffix.lower() not in SUFFIXES]
        if not found[name]:
            known = ", ".join(SUFFIXES)
            raise DataError(f"{address.source}: {folder / name} has no image ({known}); add some, or take it away")
    if others:
        print(f"{address.source}: {len(others)} files are no images and left out, like {others[0]}", file=sys.stderr)
    return found


def _survey(address: Address, files: list[Path]) -> tuple[tuple[int | None, ...], type, dict[str, Any]]:
    """The shape that all images have, None where they differ; their type; and two files that differ in size."""
    sizes: dict[tuple[int, int], Path] = {}
    types: dict[np.dtype, Path] = {}
    channels = 1
    for file in files:
        image = read_image(file)
        sizes.setdefault(image.shape[:2], file)
        types.setdefault(image.dtype, file)
        channels = max(channels, image.shape[-1])
    if len(types) > 1:
        shown = ", ".join(f"{file} of {8 * dtype.itemsize} bits" for dtype, file in types.items())
        raise DataError(f"{address.source} has images of different depths, {shown}; convert them to one depth")
    first, *others = sizes.items()
    metadata = {"differing": [[str(file), *size] for size, file in (first, others[0])]} if others else {}
    return (*((None, None) if others else first[0]), channels), next(iter(types)).type, metadata
