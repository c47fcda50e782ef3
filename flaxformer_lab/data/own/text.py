"""`text:PATH`: a text file, or a folder of `.txt` files."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from flaxformer_lab.data.own.address import Address
from flaxformer_lab.data.own.contents import (
    SPLITS,
    Contents,
    files_below,
    refuse_split,
    shares,
    shares_of_train,
    split_by_share,
    split_folders,
)
from flaxformer_lab.errors import DataError

MANY_FILES = 10  # different texts, from which on each file is in one split
Texts = dict[str, str]  # by the file's name


def read(address: Address) -> Contents:
    """Examples with `text` and `file`, its name; no text is in two splits.

    Ten and more different files are divided at random, copies of one file together. Of fewer, each file is cut: its
    beginning trains, the next part validates, its end tests. Subfolders train, validation and test keep their splits.

    Raises:
        DataError: there is no text, or a file is not UTF-8; names the file and the byte.
    """
    by_split = split_folders(address, (".txt",))
    if by_split:
        given = {name: _texts(address, folder) for name, folder in by_split.items()}
        _refuse_common(address, given)
        refuse_split(address, given)
        train = _divide(address, given.get("train", {}), shares_of_train(address, given))
        parts = {name: train[name] if name in train else given[name] for name in SPLITS}
    else:
        parts = _divide(address, _texts(address, address.path), dict(zip(SPLITS, shares(address), strict=True)))
    features = {"text": tfds.features.Text(), "file": tfds.features.Text()}
    examples = {name: [{"file": file, "text": text} for file, text in texts.items()] for name, texts in parts.items()}
    return Contents(features, {name: (lambda each=each: iter(each)) for name, each in examples.items()})


def _texts(address: Address, path: Path) -> Texts:
    """What is in the file, or in those of the folder, but for empty ones."""
    files = files_below(path)
    if path.is_dir():
        others = [file for file in files if file.suffix.lower() != ".txt"]
        files = [file for file in files if file.suffix.lower() == ".txt"]
        if others:
            print(f"{address.source}: {len(others)} files are no .txt and left out, like {others[0]}", file=sys.stderr)
    texts = {str(file.relative_to(path) if path.is_dir() else file.name): read_text(file) for file in files}
    texts = {name: text for name, text in texts.items() if text.strip()}
    if not texts:
        wanted = "no .txt file with text" if path.is_dir() else "no text"
        raise DataError(f"{address.source}: {path} has {wanted}; write some into it")
    return texts


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, with the ends of lines as Python has them.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} is not UTF-8: byte 0x{content[error.start]:02x} at position {error.start}, line {line}; convert "
            "it, as by iconv -f LATIN1 -t UTF-8"
        ) from error


def _divide(address: Address, texts: Texts, parts: Mapping[str, float]) -> dict[str, Texts]:
    """The texts of each part, by files or by places in them. parts: the share of each, whose sum is 1."""
    different = sorted(set(texts.values()))
    if len(different) >= MANY_FILES:
        rows = split_by_share(address, len(different), parts)
        part_of = {different[row]: name for name, chosen in rows.items() for row in chosen}
        return {part: {file: text for file, text in texts.items() if part_of[text] == part} for part in parts}
    found: dict[str, Texts] = {name: {} for name in parts}
    for text in dict.fromkeys(texts.values()):
        begin = 0
        for name, share in zip(parts, np.cumsum(list(parts.values())), strict=True):
            end = _cut(text, round(share * len(text)))
            if text[begin:end].strip():
                found[name][next(file for file, each in texts.items() if each == text)] = text[begin:end]
            begin = end
    for name in [name for name in parts if not found[name]][:1]:
        raise DataError(f"{address.source} has too few characters, {sum(map(len, texts.values()))}: {name} has no text")
    return found


def _cut(text: str, place: int) -> int:
    """Where a text is cut: at the last end of a line before the place, if there is one near."""
    nearby = max(0, place - len(text) // 50)
    line_end = text.rfind("\n", nearby, place)
    return place if line_end < 0 or place == len(text) else line_end + 1


def _refuse_common(address: Address, given: Mapping[str, Texts]) -> None:
    """Raises DataError where one text is in two splits."""
    seen: dict[str, str] = {}
    for split, texts in given.items():
        for file, text in texts.items():
            where = seen.setdefault(text, f"{split}/{file}")
            if where.partition("/")[0] != split:
                raise DataError(
                    f"{address.source}: {where} and {split}/{file} are the same text; take one of them away"
                )
