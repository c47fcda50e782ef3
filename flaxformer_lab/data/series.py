"""A time series as a whole, from any data set of that form: rows evenly spaced in time, and the borders of the splits.

Windows are drawn from it without copies; missing values are filled, and marks say where in the calendar a row is.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.columns import Column
from flaxformer_lab.data.own.series import read_series as read_own_series
from flaxformer_lab.data.series_builders import HOUR, TIME, Borders, numbers, parse_table, seconds
from flaxformer_lab.data.source import SPLITS, open_split
from flaxformer_lab.errors import DataError

DAY = 24 * HOUR


def borders_of_ett(rows: int, step: int) -> Borders:
    """12, 4 and 4 months of 30 days (Zhou et al. 2021, section 5.1); what comes later is left out.

    Raises:
        DataError: there are fewer rows.
    """
    month = 30 * DAY // step
    if rows < 20 * month:
        raise DataError(f"{rows:,} rows are less than the 20 months of 30 days, {20 * month:,} rows, of an ETT file")
    return {"train": (0, 12 * month), "validation": (12 * month, 16 * month), "test": (16 * month, 20 * month)}


@dataclass(frozen=True)
class Series:
    """All rows of a series, in the order of time.

    channels: their names. time: seconds since 1970. values: NaN where one is missing. borders: the rows of each split.
    step: seconds from one row to the next. notes: what a user should know of a file of their own. columns: how such a
    file's channels are read. has_zone: whether its times have a time zone; None of other data.
    """

    name: str
    channels: tuple[str, ...]
    time: Int64[np.ndarray, " rows"]
    values: Float32[np.ndarray, "rows channels"]
    borders: Borders
    step: int
    notes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    has_zone: bool | None = None


def read_series(dataset: str) -> Series:
    """The series of a data set: a name of TFDS, `csv:PATH`, or `ett:PATH`, a CSV in the layout of the ETT files.

    Raises:
        DataError: there is none, it cannot be read, or its rows are not evenly spaced in time.
    """
    if dataset.startswith("ett:"):
        return _read_ett(dataset)
    address = parse_address(dataset)
    if address is None or address.kind not in ("csv", "parquet"):
        return _read_prepared(dataset)
    own = read_own_series(address)
    borders = dict(zip(SPLITS, itertools.pairwise([0, *own.ends]), strict=True))
    names = tuple(column.name for column in own.channels)
    facts = own.step, own.notes, own.channels, own.has_zone
    return Series(address.source, names, own.time, own.values, borders, *facts)


def _read_prepared(dataset: str) -> Series:
    sources = [open_split(dataset, split) for split in SPLITS]
    features = sources[0].info.features
    channels = tuple(name for name in features if name != TIME and features[name].shape == (None,))
    if TIME not in features or not channels or any(len(source) != 1 for source in sources):
        raise DataError(
            f"task.dataset={dataset} is no series: it has {', '.join(features)}. A series has one record a split, with "
            f"{TIME} in seconds and a feature of one axis for each channel, like lab_beijing_air"
        )
    records = [next(source.records()) for source in sources]
    time = np.concatenate([record[TIME] for record in records]).astype(np.int64)
    values = np.stack([np.concatenate([record[name] for record in records]) for name in channels], axis=1)
    ends = np.cumsum([0, *(len(record[TIME]) for record in records)]).tolist()
    borders = dict(zip(SPLITS, itertools.pairwise(ends), strict=True))
    return Series(dataset, channels, time, values.astype(np.float32), borders, even_step(dataset, time))


def _read_ett(dataset: str) -> Series:
    path = Path(dataset.removeprefix("ett:")).expanduser()
    try:
        table = parse_table(path.read_text(encoding="utf-8"))
        first, *channels = table
        time, values = seconds(table[first]), np.stack([numbers(table[name]) for name in channels], axis=1)
    except (OSError, ValueError) as error:
        raise DataError(
            f"task.dataset={dataset} cannot be read ({error}); an ETT file is a CSV whose first column is the date, "
            "like 2016-07-01 00:00:00, and all others are numbers"
        ) from error
    step = even_step(dataset, time)
    return Series(dataset, tuple(channels), time, values, borders_of_ett(len(time), step), step)


def even_step(name: str, time: Int64[np.ndarray, " rows"]) -> int:
    """Seconds from one row to the next.

    Raises:
        DataError: they differ, or time goes backwards.
    """
    steps = np.diff(time)
    usual = int(np.median(steps)) if len(steps) else 0
    odd = np.flatnonzero(steps != usual)
    if usual <= 0 or len(odd):
        place = int(odd[0]) if len(odd) else 0
        before, after = (str(np.datetime64(int(each), "s")) for each in time[place : place + 2])
        raise DataError(
            f"{name}: time is not even: {len(odd):,} of {len(steps):,} steps are not {usual} seconds, first from row "
            f"{place} ({before}) to row {place + 1} ({after}); put the rows on an even grid, with empty values for gaps"
        )
    return usual


def check_values(series: Series) -> None:
    """Raises DataError where a channel has no value in training, or one that is infinite."""
    first, last = series.borders["train"]
    for name, values in zip(series.channels, series.values.T, strict=True):
        if np.isnan(values[first:last]).all():
            raise DataError(f"{series.name}: channel {name} has no value in the training rows; leave it out")
        if np.isinf(values).any():
            raise DataError(f"{series.name}: channel {name} has an infinite value; correct it, or leave it empty")


def fill_forward(values: Float32[np.ndarray, "rows channels"]) -> Float32[np.ndarray, "rows channels"]:
    """Each missing value becomes the last one before it; those before the first value become that one."""
    known = ~np.isnan(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1), axis=0)
    source = np.where(last < 0, known.argmax(axis=0)[None], last)
    return np.take_along_axis(values, source, axis=0)


def interpolate(values: Float32[np.ndarray, "rows channels"]) -> Float32[np.ndarray, "rows channels"]:
    """Each missing value lies on the line between its neighbours, of which one is in the future."""
    rows, known = np.arange(len(values)), ~np.isnan(values)
    columns = [np.interp(rows, rows[each], column[each]) for column, each in zip(values.T, known.T, strict=True)]
    return np.stack(columns, axis=1).astype(np.float32)


# --------------------------------------------------------------------------------------------- marks of the time

MARKS = {"minute": (0, 59), "hour": (0, 23), "weekday": (0, 6), "day": (1, 31), "month": (1, 12)}  # least and most


def mark_names(step: int) -> tuple[str, ...]:
    """The parts of the calendar that change from row to row or more slowly: minute below an hour, and so on."""
    if step < HOUR:
        return tuple(MARKS)
    return tuple(MARKS)[1:] if step < DAY else tuple(MARKS)[2:]


def calendar_marks(time: Int64[np.ndarray, " rows"], step: int) -> Float32[np.ndarray, "rows marks"]:
    """Minute, hour, weekday (Monday first), day and month, as far as they vary, each scaled to -0.5 .. 0.5."""
    at = time.astype("datetime64[s]")
    days, months = at.astype("datetime64[D]"), at.astype("datetime64[M]")
    parts = {
        "minute": time // 60 % 60,
        "hour": time // HOUR % 24,
        "weekday": (days.astype(np.int64) + 3) % 7,  # 1970-01-01 was a Thursday
        "day": (days - months).astype(np.int64) + 1,
        "month": months.astype(np.int64) % 12 + 1,
    }
    scaled = [(parts[name] - MARKS[name][0]) / (MARKS[name][1] - MARKS[name][0]) - 0.5 for name in mark_names(step)]
    return np.stack(scaled, axis=1).astype(np.float32)
