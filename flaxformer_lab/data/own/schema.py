"""What a prepared table keeps of its columns: how their values become numbers and the levels of its categories."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32

from flaxformer_lab.data.own.address import Address
from flaxformer_lab.data.own.columns import (
    Column,
    Table,
    as_float32,
    is_missing,
    levels_of,
    numbers_of,
    read_csv,
    read_parquet,
)
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import nearest

ROUNDED = "{} is rounded: float32 keeps 7 digits; subtract its smallest value"  # a note on a column
UNKNOWN = "unknown"  # level 0 of every category: rare in training, or not there


@dataclass(frozen=True)
class Category:
    """levels: by frequency in training, `unknown` first; None is a missing value. counts: their training rows."""

    name: str
    levels: tuple[str | None, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in order.

    others: columns of the file that are no inputs. target: how the one to predict is read; None where it was not kept.
    """

    columns: tuple[Column, ...]
    categories: tuple[Category, ...]
    others: tuple[str, ...] = ()
    target: Column | None = None

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Schema":
        """Reads what `as_json` gives."""
        columns = (Column.from_json(each) for each in tree["columns"])
        categories = (
            Category(each["name"], tuple(each["levels"]), tuple(each["counts"])) for each in tree["categories"]
        )
        target = Column.from_json(tree["target"]) if tree.get("target") else None
        return cls(tuple(columns), tuple(categories), tuple(tree["others"]), target)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def numbers(self) -> tuple[Column, ...]:
        """The columns that give a number each."""
        return tuple(column for column in self.columns if column.kind != "category")

    @property
    def meanings(self) -> tuple[Any, ...]:
        """What each number and each level stands for."""
        columns = tuple((column.name, column.kind, column.parts) for column in self.columns)
        return columns, tuple((category.name, category.levels) for category in self.categories)

    def encode(self, table: Table) -> tuple[Float32[np.ndarray, "rows numbers"], Int32[np.ndarray, "rows categories"]]:
        """The numbers of each row, NaN where one is missing, and the levels of its categories.

        Raises:
            ConfigError: the table lacks a column, or has one that is unknown.
            DataError: a value is not of its column's kind.
        """
        self._check_names(table)
        numbers = np.empty((len(table), len(self.numbers)), np.float32)
        for place, column in enumerate(self.numbers):
            numbers[:, place] = as_float32(table, column.name, numbers_of(table, column))
        texts = {name: values for column in self.columns for name, values in levels_of(table, column).items()}
        codes = np.zeros((len(table), len(self.categories)), np.int32)
        for place, category in enumerate(self.categories):
            levels = list(enumerate(category.levels))
            code = {_whole(level): number for number, level in levels} | {level: number for number, level in levels}
            codes[:, place] = [code.get(level, code.get(_whole(level), 0)) for level in texts[category.name]]
        return numbers, codes

    def _check_names(self, table: Table) -> None:
        wanted = [column.name for column in self.columns]
        lacking = [name for name in wanted if name not in table.columns]
        unknown = [name for name in table.columns if name not in {*wanted, *self.others}]
        if lacking:
            hint = nearest(lacking[0], unknown)
            raise ConfigError(f"{table.path} lacks {_columns(lacking)}; {hint}this model takes {', '.join(wanted)}")
        if unknown:
            raise ConfigError(
                f"{table.path} has {_columns(unknown)}, which the training table had not; leave that out; this model "
                f"takes {', '.join(wanted)}"
            )


def _whole(level: str | None) -> str | None:
    """1.0 as 1: pandas writes whole numbers so where some are missing."""
    return level and re.sub(r"(?<=\d)\.0$", "", level)


def fit_schema(
    table: Table,
    columns: Sequence[Column],
    train: Int[np.ndarray, " train"],
    rare: int,
    others: Sequence[str],
    target: Column | None = None,
) -> tuple[Schema, list[str]]:
    """The schema, with the levels that at least `rare` training rows have; and the categories without such a level."""
    categories, empty = [], []
    for column in columns:
        for name, texts in levels_of(table, column).items():
            if all(text is None or re.fullmatch(r"[+-]?\d+(\.0)?", text) for text in texts):
                texts = [_whole(text) for text in texts]
            counts = Counter(texts[row] for row in train)
            by_count = sorted(counts.items(), key=lambda each: (-each[1], each[0] is None, each[0]))
            common = [level for level, count in by_count if count >= rare]
            seen = [counts[level] for level in common]
            if common:
                categories.append(Category(name, (UNKNOWN, *common), (len(train) - sum(seen), *seen)))
            else:
                empty.append(name)
    rare_alone = [column.name for column in columns if column.kind == "category" and column.name in empty]
    kept = [column for column in columns if column.name not in rare_alone]
    kept = [
        dataclasses.replace(each, parts=tuple(part for part in each.parts if f"{each.name} {part}" not in empty))
        for each in kept
    ]
    return Schema(tuple(kept), tuple(categories), (*others, *rare_alone), target), empty


def table_of(raw: Any, address: Address | None = None) -> Table:
    """New rows as a table: the path of a CSV or parquet file, a DataFrame, a mapping to lists, or a list of mappings.

    address: of the file that a model was trained on, whose delimiter is that of a new one; None of other data.

    Raises:
        ConfigError: it is something else, or its columns differ in length.
        DataError: a file that cannot be read.
    """
    if isinstance(raw, Table):
        return raw
    if isinstance(raw, str | Path):
        delimiter = address.options.get("delimiter") if address else None
        return read_parquet(raw) if Path(raw).suffix.lower() == ".parquet" else read_csv(raw, delimiter)
    if hasattr(raw, "to_dict") and hasattr(raw, "columns"):
        raw = raw.to_dict("list")
    if isinstance(raw, Mapping):
        columns = {str(name): list(values) if np.ndim(values) == 1 else None for name, values in raw.items()}
        for name, values in columns.items():
            if values is None:
                raise ConfigError(f"predict: column {name} is {type(raw[name]).__name__}; give a list, one value a row")
    elif isinstance(raw, list | tuple) and raw and all(isinstance(row, Mapping) for row in raw):
        columns = {
            str(name): [row.get(name) for row in raw] for name in dict.fromkeys(name for row in raw for name in row)
        }
    else:
        raise ConfigError(
            f"predict: {type(raw).__name__} is no table with named columns; give the path of a CSV or parquet file, a "
            "mapping of names to lists, a list of rows as mappings, or a DataFrame"
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigError(
            f"predict: the columns have {', '.join(f'{n} ({k})' for n, k in lengths.items())} rows; give each as many"
        )
    values = {name: [None if is_missing(value) else _plain(value) for value in each] for name, each in columns.items()}
    return Table("predict", values, np.arange(len(next(iter(values.values())))), unit="row")


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's, a text without spaces around it."""
    if isinstance(value, str):
        return value.strip()
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' * (len(names) > 1)} {', '.join(names)}"


def loses_precision(values: np.ndarray) -> bool:
    """Whether float32 blurs the differences between these numbers."""
    spread = np.nanstd(values)
    return bool(
        spread > 0 and np.nanmax(np.abs(values - values.astype(np.float32))) > 1e-3 * spread and math.isfinite(spread)
    )
