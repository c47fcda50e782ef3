"""Builds a TFDS data set on first use: without TensorFlow, once for all processes, and atomically."""

import contextlib
import difflib
import errno
import functools
import hashlib
import inspect
import io
import logging
import os
import re
import shutil
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from flaxformer_lab import registry
from flaxformer_lab.cache import cache_folder
from flaxformer_lab.data import basket_builder, field_builders, series_builders, table_builders  # noqa: F401  registers the lab's own
from flaxformer_lab.data.builders import CHECKSUMS, format_checksums, parse_checksums
from flaxformer_lab.data.own import builder as own
from flaxformer_lab.data.own.address import OPTIONS, Address, parse_address
from flaxformer_lab.data.own.builder import file_state
from flaxformer_lab.data.tensorflow_stand_in import import_all_builders, tensorflow_stand_in
from flaxformer_lab.errors import DataError, LabError
from flaxformer_lab.literal_paths import take_folders_literally
from flaxformer_lab.locking import file_lock

_NAME = re.compile(r"(?P<name>[a-z0-9_]+)(/[\w.-]+)?(:[\d.*]+)?")
_SOURCE = ".source"  # in a prepared data set that ships or is the user's own: the fingerprint of what it was built from
_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_NO_NETWORK = (requests.RequestException, urllib.error.URLError, tfds.download.DownloadError, ConnectionError)
_ONE_THREAD = threading.RLock()  # held while what all threads share is changed
take_folders_literally()


@dataclass(frozen=True)
class _Target:
    """A data set that is to be prepared.

    dataset: as the user wrote it. name, root: its folder is below `root/name`. label(): how messages name it.
    folder(): of the version that is asked for. open(): its builder.
    fingerprint(recorded): what it is built from, where it is kept in the lab's cache; None for one of TFDS. recorded:
    what the copy in the cache was built from, if there is one. make(fingerprint): a builder that can prepare it.
    """

    dataset: str
    name: str
    root: Path
    label: Callable[[], str]
    folder: Callable[[], Path]
    open: Callable[[], tfds.core.DatasetBuilder]
    make: Callable[[str], tfds.core.DatasetBuilder]
    fingerprint: Callable[[str | None], str] | None


def prepare(dataset: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set that is ready to be read; builds the data set first if necessary.

    The data sets that ship with the lab and own files are kept in its cache, all others in the folder of TFDS
    (`TFDS_DATA_DIR`, or `~/tensorflow_datasets`), so that existing copies are used. A copy that is not array_record
    (usually tfrecord) cannot be read without TensorFlow: then a second one is built in the lab's cache.

    A registered data set whose builder was edited since, or one of the files that the builder names in `SOURCES`, is
    built again, and says so; likewise own files. Where own files are gone, the prepared copy serves.

    Args:
      dataset: a TFDS name, optionally with a config and a version: `name`, `name/config`, `name/config:1.2.3`; or own
        files: `KIND:PATH?OPTION=VALUE&...` (see `own/address.py`).

    Raises:
      ConfigError: an address of own files that cannot be understood.
      DataError: the name is unknown, or the data set cannot be fetched, written or trusted.
    """
    address = parse_address(dataset)
    target = _named(dataset) if address is None else _own(address)
    with _explained(target.dataset, target.name, target.root), quiet(), tensorflow_stand_in():
        _check_digests(target.root / target.name)
        if _is_whole(target):
            return target.open()
        target.root.mkdir(parents=True, exist_ok=True)
        with file_lock(target.root / f".{target.name}.lock", wait=True):
            if not _is_whole(target):  # No other process has built it meanwhile.
                _clear(target)
                _build(target)
        return target.open()


def _named(dataset: str) -> _Target:
    """A data set that is registered or of TFDS."""
    parsed = _NAME.fullmatch(dataset)
    if parsed is None:
        raise DataError(
            f"task.dataset={dataset!r} is not a TFDS name; write name, name/config or name/config:1.2.3, or own files: "
            f"{', '.join(f'{kind}:PATH' for kind in OPTIONS)}"
        )
    name = parsed["name"]
    fingerprint = None
    if name in registry.names("dataset"):
        root, fingerprint = cache_folder("datasets"), lambda recorded: _fingerprint(name)
    else:
        root = _root(dataset, name)
    builder = functools.partial(tfds.builder, dataset, data_dir=root)
    label, folder = lambda: builder().info.full_name, lambda: Path(builder().data_dir)
    return _Target(dataset, name, root, label, folder, builder, lambda found: builder(), fingerprint)


def _own(address: Address) -> _Target:
    root = cache_folder("datasets")
    folder = root / address.key / str(own.OwnFiles.VERSION)
    return _Target(
        dataset=str(address),
        name=address.key,
        root=root,
        label=lambda: str(address),
        folder=lambda: folder,
        open=functools.partial(tfds.builder_from_directory, folder),
        make=functools.partial(own.OwnFiles, address, data_dir=root),
        fingerprint=functools.partial(own.fingerprint, address),
    )


def tfds_folder() -> Path:
    """Returns the folder where TFDS keeps data sets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _root(dataset: str, name: str) -> Path:
    """Returns the folder of data sets that has this one, or will have it."""
    if name in registry.names("dataset"):
        return cache_folder("datasets")
    with _explained(dataset, name, tfds_folder()), quiet(), tensorflow_stand_in():
        import_all_builders()
        builder = tfds.builder(dataset, data_dir=tfds_folder())
        unreadable = builder.is_prepared() and _ARRAY_RECORD not in builder.info.available_file_formats()
    return cache_folder("datasets") if unreadable else tfds_folder()


def damaged(dataset: str, folder: Path, detail: object) -> DataError:
    """Returns the error for prepared data that can no longer be trusted."""
    return DataError(f"{dataset} in {folder} is damaged ({_text(detail)}); delete that folder to build it again")


def _is_whole(target: _Target) -> bool:
    folder = target.folder()
    if target.fingerprint:
        return (folder / CHECKSUMS).exists() and not _is_outdated(target)  # It is written last.
    is_prepared = target.open().is_prepared()
    if folder.exists() and not is_prepared:
        raise damaged(target.name, folder, "dataset_info.json is missing")
    return is_prepared


def _is_outdated(target: _Target) -> bool:
    """Whether the data set was built from another source; a copy of an earlier version of the lab says nothing."""
    path = target.folder() / _SOURCE
    recorded = path.read_text() if path.exists() else None
    found = target.fingerprint(recorded)
    if recorded is not None and recorded.partition("\n")[0] != found.partition("\n")[0]:
        return True
    if found != recorded:  # an earlier copy, or the same content at another time
        with contextlib.suppress(OSError):
            path.write_text(found)
    return False


def _fingerprint(name: str) -> str:
    """A digest of the code that builds a registered data set and of the files that it names in `SOURCES`."""
    kind, digest = registry.lookup("dataset", name).build, hashlib.sha256()
    for each in kind.__mro__:
        if each.__module__.startswith(("tensorflow_datasets.", "builtins")):
            continue
        # A file that was imported as a whole may hold what the builder reads; of others the class alone counts.
        text = registry.imported_texts().get(getattr(sys.modules.get(each.__module__), "__file__", None))
        with contextlib.suppress(OSError, TypeError):  # typed in, not in a file
            digest.update((text or inspect.getsource(each)).encode())
    for path in map(Path, getattr(kind, "SOURCES", ())):
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise DataError(f"{kind.name} is built from {path}, which cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _clear(target: _Target) -> None:
    """Removes an outdated copy, or the files of an interrupted build, from the lab's cache."""
    if target.fingerprint:
        folder = target.folder()
        if (folder / CHECKSUMS).exists():
            print(f"the source of {target.label()} changed since it was prepared", file=sys.stderr)
        for unfinished in [folder, *folder.parent.glob(f"incomplete.*_{folder.name}")]:
            shutil.rmtree(unfinished, ignore_errors=True)


def _build(target: _Target) -> None:
    in_cache = target.fingerprint is not None
    found = target.fingerprint(None) if in_cache else ""  # first: an edit while it is read counts as a later one
    print(f"preparing {target.label()} in {target.folder()} ...", file=sys.stderr)
    tfds.display_progress_bar(sys.stderr.isatty() and not in_cache)
    with _limited_waiting():
        target.make(found).download_and_prepare(
            file_format=_ARRAY_RECORD,
            download_dir=None if in_cache else tfds_folder() / "downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    if in_cache:
        folder = target.folder()
        (folder / _SOURCE).write_text(found)
        unfinished = folder / f".{CHECKSUMS}"
        unfinished.write_text(format_checksums(_digests(folder)))
        unfinished.rename(folder / CHECKSUMS)


def _digests(folder: Path) -> dict[str, str]:
    """Returns the sha256 of each file of a prepared data set."""
    files = (path for path in folder.iterdir() if path.name != CHECKSUMS and not path.name.startswith("."))
    return {path.name: _digest(path, *file_state(path)) for path in files}


@functools.lru_cache(maxsize=10_000)
def _digest(path: Path, *state: int) -> str:
    """The sha256 of a file, read once in a process as long as its state stays."""
    del state
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_digests(folder: Path) -> None:
    """Compares the files of each version with the digests that were written with them, where there are any."""
    for path in folder.glob(f"*/{CHECKSUMS}"):
        try:
            differing = parse_checksums(path.read_text()).items() ^ _digests(path.parent).items()
        except ValueError as error:
            raise damaged(folder.name, path.parent, f"{CHECKSUMS} cannot be read") from error
        if differing:
            names = ", ".join(sorted({name for name, _ in differing}))
            raise damaged(folder.name, path.parent, f"changed since it was written: {names}")


class _Muted:
    """A stream that drops what this thread writes to it."""

    def __init__(self, stream: "io.TextIOBase | _Muted"):
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from printing to stdout, and from logging warnings that do not concern the user.

    An ablation opens data in one thread while another reports progress: that one's output stays, and two threads enter
    one after the other, since each puts the stream and the level of logging back as it found them.
    """
    with _ONE_THREAD:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with contextlib.redirect_stdout(_Muted(sys.stdout)):
                yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _limited_waiting() -> Iterator[None]:
    """Lets a download fail within a minute: TFDS has no timeout and retries ten times with growing delays."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # Else it logs each retry.
    before = downloader.MAX_RETRIES, downloader._open_url
    downloader.MAX_RETRIES, downloader._open_url = 2, functools.partial(downloader._open_url, timeout=20)
    try:
        yield
    finally:
        downloader.MAX_RETRIES, downloader._open_url = before


@contextlib.contextmanager
def _explained(dataset: str, name: str, root: Path) -> Iterator[None]:
    """Turns the errors of TFDS and of the system while a data set is opened or built into one DataError."""
    try:
        yield
    except (LabError, MemoryError):
        raise
    except Exception as error:
        raise DataError(_explain(dataset, name, root, error)) from error


def _explain(dataset: str, name: str, root: Path, error: Exception) -> str:
    causes = list(_causes(error))
    variable = "TFDS_DATA_DIR" if root == tfds_folder() else "FLAXFORMER_LAB_CACHE"
    if isinstance(error, tfds.core.DatasetNotFoundError):
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
        return f"task.dataset={dataset!r} is not a data set of TFDS; " + (
            f"nearest: {', '.join(near)}" if near else f"{_shipped()} ship with the lab"
        )
    if cause := next((cause for cause in causes if _is_system_error(cause, _NO_SPACE)), None):
        return (
            f"no space to prepare {dataset} in {root} ({_text(cause)}); free some, or set {variable} to another folder"
        )
    if any(isinstance(cause, _NO_NETWORK) for cause in causes):
        return (
            f"{dataset} cannot be downloaded ({_text(causes[-1])}); {_shipped()} need no network; "
            f"or prepare {dataset} on another machine, with file_format=array_record, and copy it to {root}"
        )
    if cause := next((cause for cause in causes if _is_system_error(cause, _NO_ACCESS)), None):
        return f"{dataset} has no access to {root} ({_text(cause)}); set {variable} to a folder that can be written"
    if any(isinstance(cause, NonMatchingChecksumError) for cause in causes):
        return f"the download of {dataset} is not what TFDS expects ({_text(error)}); try again later"
    if cause := next((cause for cause in causes if isinstance(cause, ImportError) and cause.name), None):
        return (
            f"{dataset} cannot be prepared without the package {cause.name} ({_text(cause)}); install it, "
            f"or prepare {dataset} where it is, with file_format=array_record, and copy it to {root}"
        )
    way_out = f"; if it is damaged, delete {root / name}" if any((root / name).rglob("dataset_info.json")) else ""
    return f"task.dataset={dataset!r} cannot be prepared in {root} ({_text(error)}){way_out}"


def _shipped() -> str:
    return ", ".join(registry.names("dataset"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_system_error(error: BaseException, codes: tuple[int, ...]) -> bool:
    """Searches the message too: array_record and TFDS pass on the system's errors as text."""
    texts = [os.strerror(code) for code in codes] + ["Not enough disk space"] * (errno.ENOSPC in codes)
    return getattr(error, "errno", None) in codes or any(text in str(error) for text in texts)


def _text(error: object) -> str:
    """Returns an error's message as one line of at most 300 characters, without TFDS's prefix."""
    line = " ".join(str(error).split()).rpartition('}": ')[2]
    return line if len(line) <= 300 else line[:300] + " ..."
