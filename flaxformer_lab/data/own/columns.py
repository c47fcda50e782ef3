"""Columns of a table: read from a CSV file, their kinds inferred from their values, and turned into numbers.

Values are texts, as a CSV file has them, or Python's own (numbers, booleans, dates), as parquet and `predict` have
them; None where a value is missing. Every error names the file, the row and the column.
"""

import csv
import dataclasses
import datetime
import functools
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int

from flaxformer_lab.errors import DataError
from flaxformer_lab.parsing import nearest

Kind = Literal["number", "boolean", "date", "category"]
DECIMALS = {"point": ".", "comma": ","}
DELIMITERS = {",": ",", ";": ";", "tab": "\t", "|": "|"}
MISSING = frozenset(("", "na", "n/a", "#n/a", "nan", "nat", "null", "none", "<na>", "?"))
BOOLEANS = ({"false": 0.0, "f": 0.0, "true": 1.0, "t": 1.0}, {"no": 0.0, "n": 0.0, "yes": 1.0, "y": 1.0})
PARTS: dict[str, Callable[[datetime.datetime], int]] = {
    "weekday": lambda when: when.weekday(),  # Monday is 0
    "month": lambda when: when.month,
    "hour": lambda when: when.hour,
}
FEW_ROWS = 20  # with fewer, or fewer distinct values, nothing is taken for an identifier or a typing error
DISTINCT_SHARE = 0.9  # of an identifier's values
STRAY_SHARE = 0.01  # of the values of a column: more of another kind are no typing errors
_INDEX = re.compile(r"__index_level_\d+__")  # as pandas calls the labels of rows in a parquet file
_WAY_OUT = "correct it, or name the column in categories= or drop="
_EPOCH = datetime.datetime(1970, 1, 1)


@dataclass(frozen=True)
class Table:
    """path: its name in errors. columns: the values of each column. lines: where each row begins in the file, from 1.

    unit: what `lines` counts. delimiter: between the values of a CSV file.
    """

    path: str
    columns: dict[str, list[Any]]
    lines: Int[np.ndarray, " rows"]
    unit: str = "line"
    delimiter: str = ","

    def __len__(self) -> int:
        return len(self.lines)

    def error(self, name: str, row: int | np.integer, problem: str) -> DataError:
        """The error that a cell causes."""
        return DataError(f"{self.path}, {self.unit} {self.lines[row]}, column {name}: {problem}")


@dataclass(frozen=True)
class Column:
    """A column that a model is given, and how its texts are read.

    decimal: the mark of a number's fraction. day_first: of dates like 3/4/2024. parts: of a date, those that vary.
    has_zone: whether dates have a time zone; None where that is not known.
    """

    name: str
    kind: Kind
    decimal: str = "."
    day_first: bool = False
    parts: tuple[str, ...] = ()
    has_zone: bool | None = None

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Column":
        """Reads what `as_json` gives; what it lacks is the default."""
        return cls(**{**tree, "parts": tuple(tree.get("parts", ()))})

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self) | {"parts": list(self.parts)}


@dataclass(frozen=True)
class Choices:
    """What the user says of the columns: names of each kind, columns to leave out, and how texts are read."""

    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    decimal: Literal["point", "comma"] | None = None
    day_first: bool | None = None

    def check(self, table: Table) -> None:
        """Raises DataError where a name is no column of the table, or is given two kinds."""
        given: dict[str, str] = {}
        for option in ("numbers", "categories", "dates", "drop"):
            for name in getattr(self, option):
                require_column(table, name, option)
                if given.setdefault(name, option) != option:
                    raise DataError(f"{table.path}: column {name} is named by {given[name]} and by {option}; drop one")


def require_column(table: Table, name: str, option: str) -> None:
    """Raises DataError where the table lacks the column that an option names."""
    if name not in table.columns:
        known = ", ".join(table.columns)
        raise DataError(f"{table.path} has no column {name} ({option}): {nearest(name, table.columns)}it has {known}")


# ---------------------------------------------------------------------------------------------- CSV and parquet

csv.field_size_limit(2**31 - 1)  # of one value; Python's is 131,072


def read_csv(path: str | Path, delimiter: str | None = None) -> Table:
    """The columns of a CSV file with names in its first line; the delimiter is found where none is given.

    Raises:
        DataError: it cannot be read, is empty, or has names or rows that are not a table's.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; name a CSV file") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16; save it as UTF-8")
    text = data.decode("utf-8-sig", "surrogateescape")
    if not text.strip():
        raise DataError(f"{path} is empty; it needs a line of names and lines of values")
    mark = DELIMITERS[delimiter] if delimiter else _find_delimiter(text)
    rows, lines = _records(path, text, mark)
    names = [name.strip() for name in rows[0]]
    _check_names(path, names)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            last = f"column {names[len(row)]} is lacking" if len(row) < len(names) else f"after column {names[-1]}"
            raise DataError(
                f"{path}, line {line}: {len(row)} values for {len(names)} columns ({last}); correct the line, and put "
                "a value that holds the delimiter between double quotes"
            )
    if len(rows) == 1:
        raise DataError(f"{path} has names but no rows")
    columns = {
        name: [None if (value := each.strip()).lower() in MISSING else value for each in values]
        for name, values in zip(names, zip(*rows[1:], strict=True), strict=True)
    }
    table = Table(str(path), columns, np.array(lines[1:]), delimiter=mark)
    if any("\udc80" <= character <= "\udcff" for character in set(text)):
        _refuse_bytes(table, names)
    return table


def read_parquet(path: str | Path) -> Table:
    """The columns of a parquet file, with Python's own values, so times in microseconds; rows are counted from 1.

    Raises:
        DataError: it cannot be read, or has no rows; or the package pyarrow is lacking.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path} needs the package pyarrow; install it (pip install pyarrow), or write the table as CSV"
        ) from error
    try:
        stored = parquet.read_table(Path(path).expanduser())
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error
    if not stored.num_rows:
        raise DataError(f"{path} has no rows")
    for place, field in enumerate(stored.schema):
        if pyarrow.types.is_timestamp(field.type) and field.type.unit == "ns":  # Python's times have microseconds
            times = stored.column(place).cast(pyarrow.timestamp("us", field.type.tz), safe=False)
            stored = stored.set_column(place, field.name, times)
    columns = {
        name: [None if is_missing(value) else value for value in values] for name, values in stored.to_pydict().items()
    }
    return Table(str(path), columns, np.arange(1, stored.num_rows + 1), unit="row")


def _records(path: str | Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """The records that are not empty, and the line in which each begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    rows, lines, line = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: {error}; a double quote inside a quoted value is written twice"
        ) from error
    return rows, lines


def _find_delimiter(text: str) -> str:
    """The one that cuts the line of names into most parts."""
    first = next(line for line in text.splitlines() if line.strip())
    marks = DELIMITERS.values()
    parts = {each: len(next(csv.reader([first], delimiter=each, skipinitialspace=True))) for each in marks}
    return max(parts, key=parts.__getitem__)


def _check_names(path: str | Path, names: list[str]) -> None:
    for place, name in enumerate(names, 1):
        if not name:
            raise DataError(f"{path}, line 1: column {place} has no name; write one (pandas: to_csv(index=False))")
    for name, number in Counter(names).items():
        if number > 1:
            raise DataError(f"{path}, line 1: {number} columns are called {name}; give each a name of its own")
    if all(parse_number(name, ".") is not None for name in names):
        raise DataError(f"{path}, line 1: numbers where the names of the columns should be; put a line of names first")


def _refuse_bytes(table: Table, names: Sequence[str]) -> None:
    way_out = "is not UTF-8; save the file as UTF-8 (iconv -f latin1 -t utf-8)"
    spoilt = lambda text: any("\udc80" <= character <= "\udcff" for character in text or "")  # noqa: E731
    shown = lambda text: text.encode("utf-8", "surrogateescape").decode("latin-1")  # noqa: E731
    for place, name in enumerate(names, 1):
        if spoilt(name):
            raise DataError(f"{table.path}, line 1, column {place}: {shown(name)!r} {way_out}")
    for name, values in table.columns.items():
        for row, value in enumerate(values):
            if spoilt(value):
                raise table.error(name, row, f"{shown(value)!r} {way_out}")


# ----------------------------------------------------------------------------------------------------- values

_FRACTION = {
    mark: re.compile(rf"[+-]?(\d+{re.escape(mark)}?\d*|{re.escape(mark)}\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.I)
    for mark in ".,"
}
_GROUPED = {
    mark: re.compile(rf"[+-]?[1-9]\d{{0,2}}([{other}\u00a0\u202f '’])\d{{3}}(\1\d{{3}})*({re.escape(mark)}\d*)?")
    for mark, other in ((".", ","), (",", "."))
}
_SEPARATORS = re.compile("[\u00a0\u202f '’]")


def parse_number(value: Any, decimal: str) -> float | None:
    """A number, or its text with or without separators of thousands; None where it is none."""
    if not isinstance(value, str):
        return float(value) if isinstance(value, Number) and not isinstance(value, bool | np.bool_ | complex) else None
    if not _FRACTION[decimal].fullmatch(value):
        if not _GROUPED[decimal].fullmatch(value):
            return None
        value = _SEPARATORS.sub("", value.replace("," if decimal == "." else ".", ""))
    return float(value.replace(",", "."))


def parse_boolean(value: Any) -> float | None:
    """1 of true, yes, t, y or True, 0 of their opposites; None where it is none."""
    word = str(value).lower()
    return next((words[word] for words in BOOLEANS if word in words), None)


def _are_booleans(values: Iterable[Any]) -> bool:
    """Whether values say true and false, or yes and no, in words of one pair: F, N and T are three categories."""
    found = {text.lower() for text in set(map(str, values))}
    return any(found <= words.keys() and {words[word] for word in found} == {0.0, 1.0} for words in BOOLEANS)


def _any_number(value: Any) -> bool:
    return any(parse_number(value, mark) is not None for mark in DECIMALS.values())


def _any_date(value: Any) -> bool:
    return any(parse_date(value, day_first) is not None for day_first in (False, True))


_CLOCK = re.compile(r"(?<=[ T])(\d{1,2})(:\d\d[\d:.]*)(?:\s?([ap])\.?m\.?$)?", re.I)
_DAY_OR_MONTH_FIRST = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})(?:[ T]+(.+))?")


def parse_date(value: Any, day_first: bool) -> datetime.datetime | None:
    """A date, or its text: 2024-04-03, 3.4.2024, 3/4/2024, also with a time, 9:05 or 9:05 PM; None where it is none.

    day_first: whether 3/4/2024 is in April; 3.4.2024 always is.
    """
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, datetime.datetime):
        return value
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day)
    if not isinstance(value, str):
        return None
    value = _CLOCK.sub(_in_24_hours, value)
    try:
        if found := _DAY_OR_MONTH_FIRST.fullmatch(value):
            first, mark, second, year, time = found.groups()
            day, month = (first, second) if day_first or mark == "." else (second, first)
            date = datetime.date(int(year), int(month), int(day))
            return datetime.datetime.combine(date, datetime.time.fromisoformat(time or "00:00"))
        return datetime.datetime.fromisoformat(value.replace("/", "-", 2) if value[4:5] == "/" else value)
    except ValueError:
        return None


def _in_24_hours(time: re.Match[str]) -> str:
    """9:05 as 09:05, 9:05 PM as 21:05; 13:05 PM and 0:05 AM stay as they are, and are no times."""
    hour, rest, half = time.groups()
    if half and not 1 <= int(hour) <= 12:
        return time[0]
    return f"{int(hour) % 12 + 12 * (half in 'pP') if half else int(hour):02}{rest}"


def as_text(value: Any) -> str:
    """The name of a category's level; a whole number in a float, as pandas has it beside missing ones, as without."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        value = int(value)
    return str(value).strip()


def is_missing(value: Any) -> bool:
    """Whether a value stands for none."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    # NaN and NaT differ from themselves; pandas.NA can be compared with nothing.
    return value is None or type(value).__name__ == "NAType" or bool(value != value)


# ------------------------------------------------------------------------------------------------------ kinds


def infer(table: Table, choices: Choices, *, used: Iterable[str] = ()) -> tuple[list[Column], dict[str, str]]:
    """The columns to give a model, and those that are left out, each with the reason. used: columns with another use.

    Raises:
        DataError: texts that can be read in two ways, that are not of the kind that the user says, or that are unlike
            nearly all others of their column.
    """
    choices.check(table)
    left_out = {name: "as you say" for name in choices.drop}
    names = [name for name in table.columns if name not in {*used, *left_out}]
    marks = decimal_marks(table, choices, names)
    columns = []
    for name in names:
        _refuse_strays(table, name, choices, "number", _any_number)
        reason = useless(table, name, choices)
        if reason:
            left_out[name] = reason
        else:
            columns.append(column_of(table, name, choices, marks))
    return columns, left_out


def column_of(table: Table, name: str, choices: Choices, marks: Mapping[str, str] | None = None) -> Column:
    """One column, of the kind that the user says or that its values have.

    marks: as of `decimal_marks`; without them numbers that can be read in two ways are taken for some with a point.

    Raises:
        DataError: as in `infer`.
    """
    marks = decimal_marks(table, choices, ()) if marks is None else marks
    values = [value for value in table.columns[name] if value is not None]
    if name in choices.categories:
        return Column(name, "category")
    if name in choices.numbers or (name in marks and name not in choices.dates):
        column = Column(name, "number", decimal=marks.get(name, "." if choices.decimal != "comma" else ","))
        numbers_of(table, column)
        return column
    if _are_booleans(values) and name not in choices.dates:
        return Column(name, "boolean")
    if name in choices.dates or all(map(_any_date, values)):
        column = Column(name, "date", day_first=_day_first(table, name, choices))
        dates = [date for date in dates_of(table, column) if date is not None]
        parts = tuple(key for key, part in PARTS.items() if len(set(map(part, dates))) > 1)
        return dataclasses.replace(column, parts=parts, has_zone=_has_zone(table, column))
    _refuse_strays(table, name, choices, "date", _any_date)
    return Column(name, "category")


def _refuse_strays(table: Table, name: str, choices: Choices, kind: str, is_of_kind: Callable[[Any], bool]) -> None:
    """Raises DataError where all but very few texts of a column are of a kind: one makes the column a category."""
    values = table.columns[name]
    if name in choices.categories or not all(value is None or isinstance(value, str) for value in values):
        return
    texts = set(values) - {None}
    if all(map(_any_date, texts)):
        return
    of_kind = {text: is_of_kind(text) for text in texts}
    strays = [row for row, value in enumerate(values) if value is not None and not of_kind[value]]
    given = sum(value is not None for value in values)
    if strays and sum(of_kind.values()) >= FEW_ROWS and len(strays) <= max(1, STRAY_SHARE * given):
        raise table.error(
            name,
            strays[0],
            f"{values[strays[0]]} is no {kind}, but {given - len(strays):,} of {given:,} values are; {_WAY_OUT}",
        )


def useless(table: Table, name: str, choices: Choices) -> str | None:
    """Why nothing can be learned from a column, unless the user gives its kind; None where something can."""
    values = [value for value in table.columns[name] if value is not None]
    if not values:
        return "it has no values"
    if not all(isinstance(value, str | Number | datetime.date | np.datetime64 | np.bool_) for value in values):
        return f"its values are {type(values[0]).__name__}"
    distinct = set(values)
    if len(distinct) == 1 and len(values) == len(table):
        return f"it is always {values[0]}"
    if name in (*choices.numbers, *choices.categories, *choices.dates):
        return None
    if _INDEX.fullmatch(name):
        return "it is the index of a DataFrame"
    if len(values) < FEW_ROWS:
        return None
    numbers = [parse_number(value, ".") for value in distinct]
    if None not in numbers:
        whole = len(distinct) == len(table) and all(number.is_integer() for number in numbers)
        counts = whole and max(numbers) - min(numbers) == len(table) - 1
        return "it counts the rows, like an identifier" if counts else None
    if len(distinct) > DISTINCT_SHARE * len(values) and not any(
        parse_number(value, ",") is not None or _any_date(value) for value in distinct
    ):
        return f"{len(distinct)} of {len(values)} texts are distinct, like an identifier's"
    return None


def decimal_marks(table: Table, choices: Choices, names: Sequence[str]) -> dict[str, str]:
    """The mark of the fraction in each column of numbers.

    A column like 1,234 and 2,345 can be read in two ways, and one of whole numbers says nothing of how a fraction will
    be written; then the other columns of the file decide.

    Raises:
        DataError: none of them decides, and the column is among `names`.
    """
    said = DECIMALS.get(choices.decimal)
    found: dict[str, str] = {}
    whole: list[str] = []
    doubtful: dict[str, tuple[int, Any]] = {}
    for name, values in table.columns.items():
        if name in (*choices.categories, *choices.drop) or all(value is None for value in values):
            continue
        readings = {}
        for mark in ".,":
            parsed = [None if value is None else parse_number(value, mark) for value in values]
            if sum(value is None for value in parsed) == sum(value is None for value in values):
                readings[mark] = parsed
        if said in readings or len(readings) == 1:
            found[name] = said if said in readings else next(iter(readings))
        elif readings:
            differing = [row for row, pair in enumerate(zip(*readings.values(), strict=True)) if pair[0] != pair[1]]
            if differing:
                doubtful[name] = differing[0], values[differing[0]]
            else:
                found[name] = "."
                whole.append(name)
    decided = {found[name] for name in found if any(set(".,") & set(str(value)) for value in table.columns[name])}
    if len(decided) == 1:
        found |= dict.fromkeys([*whole, *doubtful], next(iter(decided)))
    for name, (row, value) in doubtful.items():
        is_likely = not decided and "." in value and table.delimiter != ";"  # as files with decimal commas have
        if name in found:
            continue
        if is_likely or name not in names:
            found[name] = "."
        else:
            raise table.error(
                name,
                row,
                f"{value} can be {value.replace(',', '.')} or {re.sub('[.,]', '', value)}; add decimal=point "
                "or decimal=comma, the mark of the fraction, or name it in categories=",
            )
    return found


def _day_first(table: Table, name: str, choices: Choices) -> bool:
    """Whether 3/4/2024 is in April: as the user says, or as the column's other dates do."""
    values = table.columns[name]
    if choices.day_first is not None:
        return choices.day_first
    readings = {order: [value is None or parse_date(value, order) for value in values] for order in (True, False)}
    possible = [order for order, dates in readings.items() if None not in dates]
    if len(possible) == 2 and readings[True] != readings[False]:
        row = next(row for row, pair in enumerate(zip(*readings.values(), strict=True)) if pair[0] != pair[1])
        raise table.error(
            name,
            row,
            f"{values[row]} can be {readings[True][row]:%d %B %Y} or {readings[False][row]:%d %B %Y}; add "
            "day_first=true or day_first=false",
        )
    return possible[0] if possible else True


# ----------------------------------------------------------------------------------------- columns as numbers


def numbers_of(table: Table, column: Column) -> Float64[np.ndarray, " rows"]:
    """A number for each row, NaN where it is missing: of a date its days since 1970, of a boolean 1 where it is true.

    Raises:
        DataError: a value is of another kind, or infinite.
    """
    if column.kind == "date":
        dates = dates_of(table, column)
        _check_zone(table, column)
        return np.array([math.nan if date is None else (date - _EPOCH) / datetime.timedelta(1) for date in dates])
    parse = parse_boolean if column.kind == "boolean" else lambda value: parse_number(value, column.decimal)
    numbers = np.empty(len(table))
    parse_text = functools.cache(parse)  # most texts of a column occur many times
    for row, value in enumerate(table.columns[column.name]):
        number = math.nan if value is None else parse_text(value) if isinstance(value, str) else parse(value)
        if number is None or math.isinf(number):
            problem = "is infinite" if number else f"is no {column.kind}"
            raise table.error(column.name, row, f"{value!r} {problem}; {_WAY_OUT}")
        numbers[row] = number
    return numbers


def as_float32(table: Table, name: str, values: Float64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
    """The numbers of a column, rounded.

    Raises:
        DataError: one is beyond float32.
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    for row in np.flatnonzero(np.isinf(rounded))[:1]:
        raise table.error(name, row, f"{values[row]:g} is beyond float32; divide the column by a power of ten")
    return rounded


def refuse_nested(table: Table, name: str) -> None:
    """Raises DataError where a parquet column has a list or a struct, which is not one value."""
    for row, value in enumerate(table.columns[name]):
        if isinstance(value, list | dict):
            raise table.error(name, row, f"it holds a {type(value).__name__}, not one value; write one value a row")


def _has_zone(table: Table, column: Column) -> bool | None:
    """Whether dates have a time zone; None where there are none."""
    first = next((value for value in table.columns[column.name] if value is not None), None)
    return None if first is None else parse_date(first, column.day_first).tzinfo is not None


def _check_zone(table: Table, column: Column) -> None:
    """Raises DataError where dates have a time zone and those of the column had none, or the other way round."""
    has_zone = _has_zone(table, column)
    if None not in (has_zone, column.has_zone) and has_zone != column.has_zone:
        row = next(row for row, value in enumerate(table.columns[column.name]) if value is not None)
        problem = "has a time zone, and the training table has none; write the time without it, as there"
        if column.has_zone:
            problem = "has no time zone, and the training table has one; add it, like +02:00 or Z"
        raise table.error(column.name, row, f"{table.columns[column.name][row]!r} {problem}")


def dates_of(table: Table, column: Column) -> list[datetime.datetime | None]:
    """The date of each row, in UTC where it has a time zone.

    Raises:
        DataError: a value is no date, or not in UTC's years; or some have a time zone and others none.
    """
    dates: list[datetime.datetime | None] = []
    zones = set()
    for row, value in enumerate(table.columns[column.name]):
        date = None if value is None else parse_date(value, column.day_first)
        if date is None and value is not None:
            raise table.error(column.name, row, f"{value!r} is no date like 2024-04-03 or 3.4.2024; {_WAY_OUT}")
        if date is not None:
            zones.add(date.tzinfo is not None)
            if len(zones) == 2:
                has = "has a time zone" if date.tzinfo else "has no time zone"
                raise table.error(
                    column.name, row, f"{value!r} {has}, unlike those before; give all of them one, or none"
                )
            try:
                date = date.astimezone(datetime.UTC).replace(tzinfo=None) if date.tzinfo else date
            except OverflowError as error:
                raise table.error(
                    column.name, row, f"{value!r} is not in the years 1 to 9999 of UTC; correct it, or leave it empty"
                ) from error
        dates.append(date)
    return dates


def levels_of(table: Table, column: Column) -> dict[str, list[str | None]]:
    """The categories that a column gives, by name: itself, or the parts of a date, like `sold month`."""
    if column.kind == "category":
        return {column.name: [None if value is None else as_text(value) for value in table.columns[column.name]]}
    if column.kind != "date" or not column.parts:
        return {}
    dates = dates_of(table, column)
    return {
        f"{column.name} {key}": [None if date is None else str(PARTS[key](date)) for date in dates]
        for key in column.parts
    }
