"""What every reader of own files returns, and how it divides examples into splits."""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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

    @classmethod
    def of_rows(
        cls,
        features: Mapping[str, tfds.features.FeatureConnector],
        examples: Callable[[Int[np.ndarray, "_"]], Iterator[dict[str, Any]]],
        rows: Mapping[str, Int[np.ndarray, "_"]],
        metadata: Mapping[str, Any],
    ) -> "Contents":
        """Of a function that reads the examples at some rows, and the rows of each split."""
        return cls(features, {name: functools.partial(examples, chosen) for name, chosen in rows.items()}, metadata)


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


def refuse_split(address: Address, given: Iterable[str]) -> None:
    """Raises ConfigError where the option `split` asks for other splits than the source has itself."""
    if "split" in address.options:
        raise ConfigError(f"task.dataset={address}: it has splits, {', '.join(given)}; leave the option split out")


def shares_of_train(address: Address, given: Collection[str]) -> dict[str, float]:
    """What train is divided into, where splits are given: each that is lacking gets a fifth.

    Raises:
        DataError: there is no train.
    """
    if "train" not in given:
        raise DataError(f"{address.source} has no train, but {', '.join(given)}; add it")
    lacking = [name for name in SPLITS if name not in given]
    return {"train": 1 - 0.2 * len(lacking), **dict.fromkeys(lacking, 0.2)}


def split_by_share(
    address: Address, number: int, parts: Mapping[str, float] | None = None
) -> dict[str, Int[np.ndarray, "_"]]:
    """The numbers 0 to number - 1 divided at random, always in the same way, each split in order.

    parts: the share of each split, whose sum is 1; None takes `shares`.

    Raises:
        DataError: a split would be empty.
    """
    parts = parts or dict(zip(SPLITS, shares(address), strict=True))
    bounds = np.round(np.cumsum(list(parts.values())) * number).astype(int)
    sizes = dict(zip(parts, np.diff(bounds, prepend=0).tolist(), strict=True))
    if min(sizes.values()) < 1:
        shown = ", ".join(f"{size} for {name}" for name, size in sizes.items())
        raise DataError(f"{address.source} has too few examples, {number}, to divide: {shown}; add some")
    return {name: np.sort(rows) for name, rows in split_at_random(number, sizes).items()}


def complete(address: Address, rows: Mapping[str, Int[np.ndarray, "_"]]) -> dict[str, Int[np.ndarray, "_"]]:
    """The splits that are given, and those that are lacking, taken from train at random.

    Raises:
        DataError: as `shares_of_train` and `split_by_share`.
    """
    parts = split_by_share(address, len(rows.get("train", ())), shares_of_train(address, rows))
    return {name: rows["train"][parts[name]] if name in parts else rows[name] for name in SPLITS}


def side_by_side(sizes: Mapping[str, int]) -> dict[str, Int[np.ndarray, "_"]]:
    """The rows of each part where parts of these sizes stand one after the other."""
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(np.arange(sum(sizes.values())), ends[:-1]), strict=True))


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


def split_folders(address: Address, suffixes: Collection[str]) -> dict[str, Path]:
    """The subfolders train, validation and test of a folder; none where it has not train and one more.

    Raises:
        DataError: others beside them, or files that end so, would be in no split.
    """
    root = address.path
    top = sorted(each for each in root.iterdir() if not each.name.startswith(".")) if root.is_dir() else []
    folders = [each for each in top if each.is_dir()]
    found = {SPLIT_NAMES[each.name.lower()]: each for each in folders if each.name.lower() in SPLIT_NAMES}
    if "train" not in found or len(found) < 2:
        return {}
    loose = [each for each in top if each.suffix.lower() in suffixes and not each.is_dir()]
    for other in [each for each in [*folders, *loose] if each not in found.values()][:1]:
        beside = ", ".join(sorted(each.name for each in found.values()))
        raise DataError(f"{address.source}: {other.name} is beside {beside}, so in no split; move it")
    return found


def files_below(path: Path) -> list[Path]:
    """The file, or all files of the folder and of those in it by name, but for hidden ones.

    Raises:
        OSError: a folder cannot be read.
    """
    if not path.is_dir():
        return [path]

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for folder, folders, files in os.walk(path, followlinks=True, onerror=refuse):
        here = Path(folder).resolve()
        above = {here, *here.parents}  # to which a link may lead back
        folders[:] = [name for name in folders if not name.startswith(".") and Path(here, name).resolve() not in above]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(found)
