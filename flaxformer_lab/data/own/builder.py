"""Turns an address of own files into a TFDS data set; `data/prepare.py` says when, and keeps it."""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from flaxformer_lab.data.own import coco, images, npz, tables, text
from flaxformer_lab.data.own.address import CONTENT, Address
from flaxformer_lab.data.own.contents import Contents, files_below
from flaxformer_lab.errors import DataError

kinds: dict[str, Callable[[Address], Contents]] = {
    "coco": coco.read,
    "csv": tables.read,
    "images": images.read,
    "npz": npz.read,
    "parquet": tables.read,
    "text": text.read,
}


class OwnFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set made of what a kind's reader finds; examples stay in the order in which it gives them.

    found: the `fingerprint` of the files, whose first word is kept as `content` among the metadata.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, address: Address, found: str, *, data_dir: Path):
        self.name = address.key
        self._address = address
        self._contents = kinds[address.kind](address)
        self._content = found.partition(" ")[0]
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=str(self._address),
            features=tfds.features.FeaturesDict(dict(self._contents.features)),
            metadata=tfds.core.MetadataDict({**self._contents.metadata, CONTENT: self._content}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        return {name: enumerate(examples()) for name, examples in self._contents.splits.items()}

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError  # `_split_generators` has the examples.


def fingerprint(address: Address, recorded: str | None) -> str:
    """What a prepared copy is built from: a line with the sha256 of the files and of the readers, then their times.

    Files of the same size and times as in `recorded`, an earlier fingerprint, are not read again. Where the files are
    gone, and there is such a copy, it is said once, and `recorded` returned.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    if recorded is not None and not address.path.exists():
        _say(f"{address.path} is gone; its prepared copy is used")
        return recorded
    if not address.path.exists():
        raise DataError(
            f"task.dataset={address}: {address.path} does not exist; give the path of what does, a relative one from "
            "the working directory"
        )
    try:
        files = files_below(address.path)
        times = json.dumps([[str(file.relative_to(address.path)), *file_state(file)] for file in files])
        content, _, known_times = (recorded or "").partition("\n")
        content = content.partition(" ")[0] if times == known_times else _digest(address.path, files)
    except OSError as error:
        raise DataError(f"task.dataset={address}: {error.filename} cannot be read: {error.strerror}") from error
    return f"{content} {_readers()}\n{times}"


@functools.cache
def _readers() -> str:
    """The sha256 of the code that reads own files: of all kinds, since they share how columns and images are read."""
    own = Path(__file__).parent
    return _digest(own.parent, [*sorted(own.glob("*.py")), own.parent / "image_files.py", own.parent / "builders.py"])


def content_digest(path: Path, files: Sequence[Path] = ()) -> str:
    """The sha256 of a file, or of some in a folder, that is read without a prepared copy.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return _digest(path, files or [path])
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _digest(root: Path, files: Sequence[Path]) -> str:
    """The sha256 of the files' names and contents."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(repr(str(file.relative_to(root))).encode())
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def file_state(file: Path) -> tuple[int, ...]:
    """What differs once a file is written again: size, times of content and of status, inode."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@functools.cache
def _say(text: str) -> None:
    """Once in a process."""
    print(text, file=sys.stderr)
