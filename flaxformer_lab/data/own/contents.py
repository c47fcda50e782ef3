"""What every reader of own files returns, and how it divides examples into splits."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from flaxformer_lab.data.builders import split_at_random
from flaxformer_lab.data.own.address import Address
from flaxformer_lab.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
# A feature that a reader may add to each example: its number in the source, by which messages name it.
SOURCE_ROW = "source_row"


@dataclass(frozen=True)
class Contents:
    """The examples of own files.

    features: the TFDS feature of each value of an example.
    splits: for train, validation and test a function that reads the examples in order.
    metadata: what a task must know of the data besides: plain JSON values, later `Source.info.metadata`.
    """

    features: Mapping[str, tfds.features.FeatureConnector]
    splits: Mapping[str, Callable[[], Iterator[dict[str, Any]]]]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def shares(address: Address) -> tuple[float, ...]:
    """The shares of train, validation and test by the option `split=share:60,20,20`, whose sum is 1.

    Raises:
        ConfigError: the option is not three positive numbers.
    """
    text = address.options.get("split", "share:60,20,20")
    try:
        parts = [float(part) for part in text.removeprefix("share").lstrip(":").split(",")] if text != "share" else []
    except ValueError:
        parts = [0.0]
    parts = parts or [60.0, 20.0, 20.0]
    if not text.startswith("share") or len(parts) != 3 or not all(0 < part < float("inf") for part in parts):
        raise ConfigError(
            f"task.dataset={address}: split={text} must be share:TRAIN,VALIDATION,TEST, three positive numbers, like "
            "share:60,20,20"
        )
    return tuple(part / sum(parts) for part in parts)


def split_by_share(address: Address, number: int) -> dict[str, Int[np.ndarray, " split"]]:
    """The numbers 0 to number - 1 divided at random by `shares`, always in the same way, each split in order.

    Raises:
        DataError: a split would be empty.
    """
    bounds = np.round(np.cumsum(shares(address)) * number).astype(int)
    sizes = dict(zip(SPLITS, np.diff(bounds, prepend=0).tolist(), strict=True))
    if min(sizes.values()) < 1:
        shown = ", ".join(f"{size} for {name}" for name, size in sizes.items())
        raise DataError(f"{address.source} has too few examples, {number}, to divide: {shown}; add some")
    return {name: np.sort(rows) for name, rows in split_at_random(number, sizes).items()}


def complete(address: Address, rows: Mapping[str, Int[np.ndarray, " split"]]) -> dict[str, Int[np.ndarray, " split"]]:
    """The splits that a source has itself, and those that it lacks, each a fifth of train at random.

    Raises:
        ConfigError: the option `split` asks for others.
        DataError: there is no train to take them from, or it is too small.
    """
    if "split" in address.options:
        raise ConfigError(f"task.dataset={address}: it has splits, {', '.join(rows)}; leave the option split out")
    train, lacking = rows.get("train", np.arange(0)), [name for name in SPLITS[1:] if name not in rows]
    taken = max(1, len(train) // 5)
    if len(train) < 1 + taken * len(lacking):
        raise DataError(f"{address.source} has {len(train)} examples in train, too few to train on; add some")
    parts = split_at_random(len(train), {"train": len(train) - taken * len(lacking), **dict.fromkeys(lacking, taken)})
    return {name: train[np.sort(parts[name])] if name in parts else rows[name] for name in SPLITS}


def class_label(address: Address, names: list[str]) -> tfds.features.ClassLabel:
    """The feature of a label whose classes have these names.

    Raises:
        DataError: a name that TFDS cannot keep.
    """
    for name in names:
        if name.strip() != name or not name or len(name.splitlines()) > 1:
            raise DataError(
                f"{address.source}: class {name!r} is empty or begins or ends with a space; name it another way"
            )
    return tfds.features.ClassLabel(names=names)


def files_below(path: Path) -> list[Path]:
    """The file, or all files of the folder and of those in it by name, but for hidden ones."""
    if not path.is_dir():
        return [path]
    found = []
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(found)
