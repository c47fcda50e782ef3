"""`csv:PATH?target=NAME` and `parquet:PATH?target=NAME`: rows of numbers, categories and dates, with a target each."""

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float64, Int

from flaxformer_lab.data.own.address import LISTS, Address
from flaxformer_lab.data.own.columns import (
    DELIMITERS,
    Choices,
    Column,
    Table,
    as_float32,
    as_text,
    column_of,
    decimal_marks,
    infer,
    numbers_of,
    parse_number,
    read_csv,
    read_parquet,
    refuse_nested,
    require_column,
)
from flaxformer_lab.data.own.contents import (
    SOURCE_ROW,
    SPLIT_NAMES,
    SPLITS,
    Contents,
    class_label,
    complete,
    split_by_share,
)
from flaxformer_lab.data.own.schema import ROUNDED, Schema, fit_schema, loses_precision
from flaxformer_lab.errors import ConfigError, DataError

MOST_CLASSES = 1000
Rows = Int[np.ndarray, "_"]


def read(address: Address) -> Contents:
    """Examples with `columns`, the numbers, NaN where one is missing; `categories`, their levels; and the target.

    The target is `label`, a class, where it has few enough values, and `target` where it is a number; a whole number
    with few values is both, and the task decides. The metadata have `table`, the schema, `target_column`, and `notes`
    for the user.

    Raises:
        ConfigError: an option that cannot be.
        DataError: a file that is no table, or values that cannot be used; names file, row and column.
    """
    table = read_table(address)
    if len(table.columns) == 1:
        raise DataError(
            f"{table.path} has one column, {next(iter(table.columns))}, but a table has two at least; put a comma, a "
            "semicolon, a tab or | between the names"
        )
    choices = choices_of(address)
    target = address.options.get("target")
    if target is None:
        raise ConfigError(
            f"task.dataset={address} lacks ?target=NAME, the column to predict: {', '.join(table.columns)}"
        )
    require_column(table, target, "target")
    choices.check(table)
    notes = []
    refuse_nested(table, target)
    table, lacking = _with_target(table, target)
    if lacking:
        notes.append(f"{lacking} rows without a value of {target} are left out")
    how, _, key = address.options.get("split", "share").partition(":")
    by_column = how in ("column", "time", "group")
    rows = _split(address, table, how, key, choices)
    # A time may be an input; a name of a split or a group says nothing of rows in another.
    used = [target] if how == "time" or not by_column else [target, key]
    columns, left_out = infer(table, choices, used=used)
    column = column_of(table, target, choices, decimal_marks(table, choices, [target]))
    schema, rare = fit_schema(table, columns, rows["train"], _rare(address), [*used, *left_out], column)
    notes += [f"{name} is left out: {why}" for name, why in left_out.items() if why != "as you say"]
    notes += [f"{name} is left out: no level has {_rare(address)} training rows" for name in rare]
    if not schema.columns:
        raise DataError(f"{table.path} has no column to learn from: {'; '.join(notes) or 'only the target'}")
    numbers, codes = schema.encode(table)
    features, targets = _target(address, table, column, choices)
    numeric = [*schema.numbers, *([column] if "target" in targets else [])]
    notes += [ROUNDED.format(each.name) for each in numeric if loses_precision(numbers_of(table, each))]
    notes += [
        f"{name} equals the target, {target}, a likely leak; drop={name} leaves it out"
        for name in _leaks(table, schema, target, rows["train"], targets)
    ]
    if schema.numbers:
        features["columns"] = tfds.features.Tensor(shape=numbers.shape[1:], dtype=np.float32)
    if schema.categories:
        features["categories"] = tfds.features.Tensor(shape=codes.shape[1:], dtype=np.int32)
    features[SOURCE_ROW] = tfds.features.Scalar(np.int32)
    values = {"columns": numbers, "categories": codes, SOURCE_ROW: table.lines.astype(np.int32)} | targets

    def examples(chosen: Rows) -> Iterator[dict[str, Any]]:
        for row in chosen:
            yield {name: values[name][row] for name in features}

    metadata = {"table": schema.as_json(), "notes": notes, "target_column": target}
    return Contents.of_rows(features, examples, rows, metadata)


def read_table(address: Address) -> Table:
    """The file as it is, each column by its name."""
    if address.kind == "parquet":
        return read_parquet(address.path)
    delimiter = address.options.get("delimiter")
    if delimiter is not None and delimiter not in DELIMITERS:
        known = " ".join(DELIMITERS)
        raise ConfigError(f"task.dataset={address}: delimiter={delimiter} is no delimiter; choose from {known}")
    return read_csv(address.path, delimiter)


def choices_of(address: Address) -> Choices:
    """What the options say of the columns."""
    options = address.options
    lists = {
        name: tuple(part.strip() for part in next(csv.reader([options[name]], skipinitialspace=True)) if part.strip())
        for name in LISTS
        if name in options
    }
    return Choices(
        **lists,
        decimal=_word(address, "decimal", {"point": "point", "comma": "comma"}),
        day_first=_word(address, "day_first", {"true": True, "false": False}),
    )


def _word(address: Address, name: str, meanings: Mapping[str, Any]) -> Any:
    text = address.options.get(name)
    if text is not None and text not in meanings:
        raise ConfigError(f"task.dataset={address}: {name}={text} is unknown; choose from {', '.join(meanings)}")
    return meanings.get(text)


def _rare(address: Address) -> int:
    text = address.options.get("rare", "5")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"task.dataset={address}: rare={text} must be a whole number of rows, at least 1")
    return int(text)


# ----------------------------------------------------------------------------------------------------- splits


def _split(address: Address, table: Table, how: str, key: str, choices: Choices) -> dict[str, Rows]:
    """The rows of train, validation and test, by the option `split`."""
    if how == "share":
        return split_by_share(address, len(table))
    if how not in ("column", "time", "group") or not key:
        raise ConfigError(
            f"task.dataset={address}: split={address.options['split']} is no way to divide rows; choose from share, "
            "share:60,20,20, column:NAME, time:NAME, group:NAME"
        )
    require_column(table, key, f"split={how}")
    for row, value in enumerate(table.columns[key]):
        if value is None:
            raise table.error(key, row, f"it has no value, but split={how}:{key} needs one in each row")
    if how == "column":
        return _split_by_column(address, table, key)
    rows = _split_by_time(table, key, choices) if how == "time" else _split_by_group(table, key)
    for name in SPLITS:
        if not len(rows[name]):
            raise DataError(
                f"{table.path}: split={how}:{key} leaves no rows for {name}; {key} has too few distinct values"
            )
    return rows


def _split_by_column(address: Address, table: Table, key: str) -> dict[str, Rows]:
    """The splits that a column names; those that it lacks are taken from train."""
    names = []
    for row, value in enumerate(table.columns[key]):
        name = SPLIT_NAMES.get(as_text(value).lower())
        if name is None:
            raise table.error(key, row, f"{value!r} is no split; write {', '.join(SPLITS)}")
        names.append(name)
    rows = {name: np.flatnonzero(np.array(names) == name) for name in SPLITS if name in names}
    return complete(address, rows)


def _split_by_time(table: Table, key: str, choices: Choices) -> dict[str, Rows]:
    """60, 20 and 20% of the rows in the order of a number or a date; rows of equal time stay together."""
    column = column_of(table, key, choices, decimal_marks(table, choices, [key]))
    if column.kind not in ("number", "date"):
        raise DataError(
            f"{table.path}: split=time:{key} needs a column of dates or numbers, but {key} is a {column.kind}"
        )
    times = numbers_of(table, column)
    order = np.argsort(times, kind="stable")
    return _cut(order, times[order])


def _split_by_group(table: Table, key: str) -> dict[str, Rows]:
    """60, 20 and 20% of the rows, by whole groups in a fixed random order."""
    groups = np.unique([as_text(value) for value in table.columns[key]], return_inverse=True)[1]
    place = np.random.Generator(np.random.Philox(key=0)).permutation(groups.max() + 1)[groups]
    order = np.argsort(place, kind="stable")
    return _cut(order, place[order])


def _cut(order: Rows, values: np.ndarray) -> dict[str, Rows]:
    """Cuts rows that are in order of their values at 60 and 80%, or where the value changes next to that."""
    changes = np.flatnonzero(np.diff(values)) + 1
    cuts = [changes[np.argmin(np.abs(changes - share * len(order)))] if len(changes) else 0 for share in (0.6, 0.8)]
    if len(changes) > 1 and cuts[0] == cuts[1]:
        later, earlier = changes[changes > cuts[0]], changes[changes < cuts[0]]
        cuts = [cuts[0], later[0]] if len(later) else [earlier[-1], cuts[0]]
    parts = np.split(order, cuts)
    return {name: np.sort(part) for name, part in zip(SPLITS, parts, strict=True)}


# ----------------------------------------------------------------------------------------------------- target


def _with_target(table: Table, target: str) -> tuple[Table, int]:
    """The rows that have a target, and how many have none."""
    kept = [row for row, value in enumerate(table.columns[target]) if value is not None]
    if not kept:
        raise DataError(f"{table.path}: column {target}, the target, has no values")
    if len(kept) == len(table):
        return table, 0
    columns = {name: [values[row] for row in kept] for name, values in table.columns.items()}
    return dataclasses.replace(table, columns=columns, lines=table.lines[kept]), len(table) - len(kept)


def _target(
    address: Address, table: Table, column: Column, choices: Choices
) -> tuple[dict[str, tfds.features.FeatureConnector], dict[str, np.ndarray]]:
    """The features of the target, a class or a number or both, and their values."""
    target, values = column.name, table.columns[column.name]
    features: dict[str, tfds.features.FeatureConnector] = {}
    arrays: dict[str, np.ndarray] = {}
    if column.kind in ("number", "date"):
        numbers = numbers_of(table, column)
        features["target"], arrays["target"] = tfds.features.Scalar(np.float32), as_float32(table, target, numbers)
        whole = column.kind == "number" and bool(np.all(numbers == np.round(numbers)))
        texts = [class_name(value, column) for value in values] if whole else []
        names = sorted(set(texts), key=int)
    else:
        texts = [class_name(value, column) for value in values]
        names = sorted(set(texts))  # false before true, no before yes
    is_class = 0 < len(names) <= min(MOST_CLASSES, len(texts) // 2) and target not in choices.numbers
    if is_class:
        code = {name: number for number, name in enumerate(names)}
        features["label"] = class_label(address, names)
        arrays["label"] = np.array([code[text] for text in texts], np.int64)
    if not features:
        raise DataError(
            f"{table.path}: column {target}, the target, has {len(names)} distinct texts in {len(texts)} rows, so it "
            "is neither a class nor a number; name another target"
        )
    if len({*map(str, values)}) == 1:
        raise DataError(f"{table.path}: column {target}, the target, is always {values[0]}; there is nothing to learn")
    return features, arrays


def class_name(value: Any, target: Column) -> str:
    """The class that a value of the target means: 1 where a number is 1.0 or `1,000` with a decimal comma."""
    number = parse_number(value, target.decimal) if target.kind == "number" else None
    text = " ".join(as_text(value if number is None else number).split())
    return text.lower() if target.kind == "boolean" else text


def _leaks(table: Table, schema: Schema, target: str, train: Rows, targets: Mapping[str, np.ndarray]) -> list[str]:
    """The columns that are a copy of the target: the same number but for scale and offset, or a name for each class."""
    found = []
    for column in schema.columns:
        if column.kind != "category" and "target" in targets:
            values = numbers_of(table, column)[train]
            if not np.isnan(values).any() and _is_line(values, targets["target"][train].astype(np.float64)):
                found.append(column.name)
        elif "label" in targets:
            texts = table.columns[column.name]
            pairs = {(texts[row], int(targets["label"][row])) for row in train}
            if len(pairs) > 1 and len(pairs) == len({text for text, _ in pairs}) == len({label for _, label in pairs}):
                found.append(column.name)
    return found


def _is_line(values: Float64[np.ndarray, " rows"], target: Float64[np.ndarray, " rows"]) -> bool:
    spread = values.std() * target.std()
    return bool(spread > 0 and abs(np.mean((values - values.mean()) * (target - target.mean()))) > (1 - 1e-6) * spread)
