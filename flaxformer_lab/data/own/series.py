"""`csv:PATH` and `parquet:PATH` as a time series: a column of dates, and channels that are numbers."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from flaxformer_lab.data.own.address import Address
from flaxformer_lab.data.own.columns import (
    DECIMALS,
    Choices,
    Column,
    Table,
    as_float32,
    column_of,
    decimal_marks,
    infer,
    numbers_of,
)
from flaxformer_lab.data.own.contents import shares
from flaxformer_lab.data.own.schema import ROUNDED, loses_precision
from flaxformer_lab.data.own.tables import choices_of, read_table
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.parsing import nearest

OF_OTHER_TASKS = ("target", "categories", "rare")  # options
MOST_ROWS = 20  # rows of the grid for each row of the file; more mean that time is not even
DAY = 86400
MONTH = 28 * DAY  # the shortest one
MONTHS = "; months differ in length, so a series of months is not read: number them by days of one length"
WHOLE_SECONDS = "times are rounded to whole seconds; resample the file to steps of whole seconds"
SAME_TIME = (
    "each row needs its own: keep one of them, write offsets like +02:00 where a clock was set back, and give each "
    "series a file of its own"
)


@dataclass(frozen=True)
class OwnSeries:
    """A file's rows on an even grid of time, NaN where one is missing.

    channels: how each is read. time: seconds since 1970, in UTC where the file `has_zone`. step: seconds from row to
    row. ends: the row after the last of train, of validation and of test. notes: what a user should know.
    """

    channels: tuple[Column, ...]
    time: Int64[np.ndarray, " rows"]
    values: Float32[np.ndarray, "rows channels"]
    step: int
    ends: tuple[int, ...]
    has_zone: bool
    notes: tuple[str, ...]


def read_series(address: Address, channels: Sequence[Column] = (), has_zone: bool | None = None) -> OwnSeries:
    """The series in a file. `dates=NAME` says which column is the time, where there are several.

    channels: to be read as they say, whatever their values; none reads all columns of numbers that change. has_zone:
    whether times must have a time zone; None where both will do.

    Raises:
        ConfigError: an option that cannot be, or that another task has.
        DataError: there is no time or no channel, two rows have the same time, time is not even or has a time zone
            where it must have none, or none where it must have one, or a value is beyond float32.
    """
    for option in OF_OTHER_TASKS:
        if option in address.options:
            raise ConfigError(
                f"task.dataset={address}: forecasting has no use for {option}=; task.targets and task.inputs name the "
                "channels"
            )
    table, choices = read_table(address), choices_of(address)
    time_name = time_column(table, choices, "a series", table.columns)
    if channels:
        columns, left_out = _known(table, choices, channels), {}
    else:
        columns, left_out = infer(table, choices, used=[time_name])
    channels = [column for column in columns if column.kind in ("number", "boolean")]
    notes = [f"{name} is left out: {why}" for name, why in left_out.items() if why != "as you say"]
    notes += [f"{column.name} is left out: it is a {column.kind}" for column in columns if column not in channels]
    if not channels:
        seen = "".join(f"; {note}" for note in notes)
        raise DataError(f"{table.path} has no channel: no column besides {time_name} has numbers to learn from{seen}")
    clock = column_of(table, time_name, choices)
    clock = clock if has_zone is None else dataclasses.replace(clock, has_zone=has_zone)
    place, time, step = _grid(table, clock)
    values = np.full((len(time), len(channels)), np.nan, np.float32)
    for number, column in enumerate(channels):
        exact = numbers_of(table, column)
        values[place, number] = as_float32(table, column.name, exact)
        notes += [ROUNDED.format(column.name)] if loses_precision(exact) else []
    if len(time) > len(table):
        gaps = np.flatnonzero(np.diff(np.sort(place)) > 1)
        first = np.datetime64(int(time[np.sort(place)[gaps[0]]]), "s")
        notes.append(f"{len(time) - len(table):,} rows are missing, in {len(gaps):,} gaps, the first after {first}")
    ends = tuple(int(end + 1e-6) for end in np.cumsum(shares(address)) * len(time))  # rounded down
    return OwnSeries(tuple(channels), time, values, step, ends, bool(clock.has_zone), tuple(notes))


def _known(table: Table, choices: Choices, known: Sequence[Column]) -> list[Column]:
    """These columns, as they are known; the mark of a fraction may be another that the user says.

    Raises:
        DataError: one is not there.
    """
    choices.check(table)
    lacking = [column.name for column in known if column.name not in table.columns]
    if lacking:
        raise DataError(
            f"{table.path} has no channel {lacking[0]}, which the model reads: "
            f"{nearest(lacking[0], table.columns)}it has {', '.join(table.columns)}"
        )
    mark = {} if choices.decimal is None else {"decimal": DECIMALS[choices.decimal]}
    return [dataclasses.replace(column, **mark) for column in known]


def time_column(table: Table, choices: Choices, what: str, among: Iterable[str]) -> str:
    """The column that says when a row was. what: the rows are, in words. among: the columns that it can be.

    Raises:
        DataError: there is none, or several.
    """
    choices.check(table)
    names = [name for name in among if name not in choices.drop]
    marks = decimal_marks(table, choices, ())
    dates = choices.dates or [name for name in names if column_of(table, name, choices, marks).kind == "date"]
    if len(dates) == 1:
        return dates[0]
    if dates:
        raise DataError(
            f"{table.path} has several columns of dates, {', '.join(dates)}; name the time with ?dates=NAME"
        )
    raise DataError(
        f"{table.path} has no column of dates, which {what} must have; it has {', '.join(names)}. Name one with "
        "?dates=NAME, or write dates like 2024-04-03 12:00"
    )


def _grid(table: Table, clock: Column) -> tuple[np.ndarray, np.ndarray, int]:
    """(where each row is, the times of all rows, seconds of a step): the step is the most frequent one.

    Times are rounded to whole seconds.

    Raises:
        DataError: a row without a time, two of the same time, or one between two steps.
    """
    name, days = clock.name, numbers_of(table, clock)
    for row in np.flatnonzero(np.isnan(days))[:1]:
        raise table.error(name, row, "it has no value, but each row needs its time")
    seconds = np.round(days * DAY).astype(np.int64)
    in_fractions = bool(np.abs(days * DAY - seconds).max(initial=0) > 1e-3)  # days are exact to a millionth of a second
    order = np.argsort(seconds, kind="stable")
    steps = np.diff(seconds[order])
    if not len(steps):
        raise DataError(f"{table.path} has one row, which is no series")
    for place in np.flatnonzero(steps == 0)[:1]:
        first, second = order[place : place + 2]
        where = f"in {table.unit} {table.lines[first]}"
        if days[first] != days[second]:
            raise table.error(name, second, f"the same second as {where}; {WHOLE_SECONDS}")
        raise table.error(name, second, f"the same time as {where}; {SAME_TIME}")
    found, counts = np.unique(steps, return_counts=True)
    step = int(found[counts.argmax()])
    rows, rest = np.divmod(seconds - seconds.min(), step)
    hint = MONTHS if step >= MONTH else f"; {WHOLE_SECONDS}" if in_fractions else ""
    for place in np.flatnonzero(rest[order])[:1]:
        raise table.error(
            name,
            order[place],
            f"time is not even: most rows are {step:,} seconds apart, not this one{hint}",
        )
    if rows.max() >= MOST_ROWS * len(table):
        raise DataError(
            f"{table.path}: {len(table):,} rows, {step:,} seconds apart, leave {rows.max():,} out; resample it"
        )
    return rows, seconds.min() + np.arange(rows.max() + 1) * step, step
