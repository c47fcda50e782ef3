"""The addresses of a user's own files: `csv:PATH?target=NAME`, `images:FOLDER`, `text:PATH`, `npz:PATH` and so on."""

import dataclasses
import hashlib
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import nearest

CONTENT = "content"  # the key of the files' digest in metadata, which other data sets lack
LISTS = ("numbers", "categories", "dates", "drop")  # options of a table that name columns
SPLIT = {"split": "how examples are divided: `share:60,20,20`, the shares of train, validation and test"}
TABLE = {
    "target": "the column to predict",
    "split": "how rows are divided: `share:60,20,20`, `column:NAME` (which says train, validation or test), "
    "`time:NAME` (the last rows are tested on), `group:NAME` (no group is in two splits)",
    "numbers": "columns that are numbers, separated by commas",
    "categories": "columns that are categories",
    "dates": "columns that are dates",
    "drop": "columns to leave out",
    "rare": "training rows below which a category's level counts as unknown; 5",
    "decimal": "the mark of a number's fraction where numbers can be read in two ways: `point`, `comma`",
    "day_first": "whether 3/4/2024 is in April where dates can be read in two ways: `true`, `false`",
}
# The options of each kind, and their meaning.
OPTIONS: dict[str, dict[str, str]] = {
    "coco": SPLIT,
    "csv": TABLE | {"delimiter": "between values, where it is not found: `,`, `;`, `tab`, `|`"},
    "images": SPLIT,
    "npz": SPLIT,
    "parquet": TABLE,
    "text": SPLIT,
}
OF_TASKS = ("ett", "tsv")  # kinds of a single task, which reads them itself: a path without options
_OF_TFDS = re.compile(r"[a-z0-9_]+(/[\w.-]+)?(:[\d.*]+)?")
_ADDRESS = re.compile(r"(?P<kind>\w+):(?P<path>.*?)(\?(?P<options>\w+=.*))?", re.DOTALL)
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".npz": "npz",
    ".txt": "text",
}  # what a path without a kind is taken for


@dataclass(frozen=True)
class Address:
    """Own files and how to read them.

    kind: names the reader, one of `OPTIONS`. path: absolute. options: as texts, in the order of their names.
    """

    kind: str
    path: Path
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        pairs = (f"{name}={urllib.parse.quote(value, safe=' :,/')}" for name, value in self.options.items())
        return f"{self.kind}:{self.path}" + (f"?{'&'.join(pairs)}" if self.options else "")

    @property
    def source(self) -> str:
        """The files alone, as messages name them."""
        return f"{self.kind}:{self.path}"

    @property
    def key(self) -> str:
        """The name of the prepared data set: of the kind, the path and the options, whatever the files hold."""
        return f"{self.kind}_{hashlib.sha256(os.fsencode(str(self))).hexdigest()[:16]}"


def parse_address(dataset: str) -> Address | None:
    """Reads `KIND:PATH?OPTION=VALUE&...`; None for the name of a data set of TFDS.

    A path may have any characters but `?NAME=`, which begins the options; a relative one is taken from the working
    directory. In an option's value `%26` is `&`, `%25` is `%` and `%2C` a comma within a name, which in a list of names
    then stands between double quotes, as in a CSV file.

    Raises:
        ConfigError: the kind or an option is unknown, or the path is missing.
    """
    found, shown = _ADDRESS.fullmatch(dataset), f"task.dataset={dataset}"
    if _OF_TFDS.fullmatch(dataset) or found is None or found["kind"] not in OPTIONS:
        _refuse_other_files(dataset, found and found["kind"])
        return None
    kind, path = found["kind"], found["path"]
    if not path:
        raise ConfigError(f"{shown} has no path; write {kind}:PATH")
    if re.match(r"\w+://", path):
        raise ConfigError(f"{shown}: {path} is a URL; download it and write {kind}:PATH")
    options = {}
    for pair in (found["options"] or "").split("&") if found["options"] else ():
        name, _, value = pair.partition("=")
        if name not in OPTIONS[kind]:
            known = ", ".join(OPTIONS[kind])
            raise ConfigError(
                f"{shown}: {name!r} is no option of {kind}: {nearest(name, OPTIONS[kind])}choose from {known}; "
                "options are written ?NAME=VALUE&NAME=VALUE, with %26 for an & in a value"
            )
        if name in options or not value:
            raise ConfigError(f"{shown}: option {name} is {'given twice' if value else 'empty'}; give it one value")
        parts = map(urllib.parse.unquote, value.split(","))
        options[name] = ",".join(f'"{part}"' if name in LISTS and "," in part else part for part in parts)
    return Address(kind, Path(path).expanduser().absolute(), dict(sorted(options.items())))


def with_absolute_path(task: Any) -> Any:
    """The config of a task whose `dataset` names own files, if it does, by their absolute path.

    Raises:
        ConfigError: as in `parse_address`, but for an unknown kind, which may be the task's own.
    """
    dataset = getattr(task, "dataset", None)
    kind, _, path = dataset.partition(":") if isinstance(dataset, str) else ("", "", "")
    if kind in OF_TASKS and path:
        return dataclasses.replace(task, dataset=f"{kind}:{Path(path).expanduser().absolute()}")
    if kind not in OPTIONS:
        return task
    return dataclasses.replace(task, dataset=str(parse_address(dataset) or dataset))


def _refuse_other_files(dataset: str, kind: str | None) -> None:
    """Raises ConfigError for what can only be meant as own files, though it is neither an address nor a TFDS name."""
    kinds = f"own files are {', '.join(f'{name}:PATH' for name in OPTIONS)}"
    suffix = Path(dataset.partition("?")[0]).suffix.lower()
    if kind is None and suffix in _SUFFIXES:
        raise ConfigError(f"task.dataset={dataset}: did you mean {_SUFFIXES[suffix]}:{dataset}? {kinds}")
    if kind is not None and not _OF_TFDS.fullmatch(dataset):
        if "/" in dataset or suffix in _SUFFIXES or nearest(kind, OPTIONS):
            raise ConfigError(f"task.dataset={dataset}: {kind!r} is no kind: {nearest(kind, OPTIONS)}{kinds}")
