"""`csv:PATH` and `parquet:PATH` as purchases: who bought what, when, and in which basket."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from flaxformer_lab.data.own.address import Address
from flaxformer_lab.data.own.columns import (
    Choices,
    Column,
    Table,
    as_text,
    column_of,
    decimal_marks,
    numbers_of,
    refuse_nested,
)
from flaxformer_lab.data.own.series import time_column
from flaxformer_lab.data.own.tables import choices_of, read_table
from flaxformer_lab.errors import ConfigError, DataError

NAMES = ("user", "basket", "item")
OPTIONS = ("dates", "day_first", "delimiter")  # those that say how the file is read
MINUTES = 24 * 60  # of a day


@dataclass(frozen=True)
class Purchases:
    """The rows of a file; users, baskets and items are numbered from 0.

    time: minutes since the earliest row. user_names, item_names: what the numbers stand for.
    """

    user: Int[np.ndarray, " rows"]
    basket: Int[np.ndarray, " rows"]
    item: Int[np.ndarray, " rows"]
    time: Int[np.ndarray, " rows"]
    user_names: tuple[str, ...]
    item_names: tuple[str, ...]


def read_purchases(address: Address) -> Purchases:
    """The purchases in a file with the columns `user` and `item`, a column of dates, and `basket`, where it has one.

    Without baskets, what a user buys in the same minute is one. `dates=NAME` says which column is the time, where there
    are several.

    Raises:
        ConfigError: an option that purchases have no use for.
        DataError: a column or a value is missing, or a time cannot be read.
    """
    for option in address.options:
        if option not in OPTIONS:
            raise ConfigError(
                f"task.dataset={address}: purchases have no use for {option}=, only for {', '.join(OPTIONS)}; "
                "task.split and task.cut say how they are divided"
            )
    table, choices = read_table(address), _choices(address)
    lacking = [name for name in ("user", "item") if name not in table.columns]
    if lacking:
        raise DataError(
            f"{table.path} has no column {' and no column '.join(lacking)}: purchases have the columns user, item and "
            f"a time, and basket where they have one; it has {', '.join(table.columns)}"
        )
    return _purchases(table, choices, time_column(table, choices, "purchases", _others(table)))


def new_purchases(table: Table, address: Address | None) -> Purchases:
    """As `read_purchases`, but with baskets the time may be missing; then rows are in its order.

    address: of the file that a model was trained on, whose options are those of this table; None of other data.

    Raises:
        ConfigError: a column is missing.
        DataError: a value or all are missing, a time cannot be read, or several columns can be the time.
    """
    choices = _choices(address)
    among = [name for name in choices.dates or _others(table) if name in table.columns]
    marks = decimal_marks(table, choices, ())
    dates = [name for name in among if column_of(table, name, choices, marks).kind == "date"]
    lacking = [name for name in ("user", "item") if name not in table.columns]
    lacking += ["basket and a time"] * (not dates and "basket" not in table.columns)
    if lacking:
        raise ConfigError(
            f"{table.path} lacks {', '.join(lacking)}; new purchases need the columns user, item, and basket or a "
            f"time, a row for each item; it has {', '.join(table.columns)}"
        )
    if not len(table):
        raise DataError(f"{table.path} has no rows; give one for each purchase")
    if len(dates) > 1:
        raise DataError(f"{table.path} has several columns of dates, {', '.join(dates)}; keep the time alone")
    return _purchases(table, choices, next(iter(dates), None))


def _choices(address: Address | None) -> Choices:
    """Purchases have no numbers, so a column of them that can be read in two ways is no error."""
    return dataclasses.replace(choices_of(address) if address else Choices(), decimal="point")


def _others(table: Table) -> list[str]:
    """The columns that can be the time."""
    return [name for name in table.columns if name not in NAMES]


def _purchases(table: Table, choices: Choices, when: str | None) -> Purchases:
    """when: the column of the time; without one all rows have the same."""
    time = np.zeros(len(table), np.int64) if when is None else _minutes(table, column_of(table, when, choices))
    (user_names, user), (item_names, item) = (_numbered(table, name) for name in ("user", "item"))
    within = _numbered(table, "basket")[1] if "basket" in table.columns else time
    basket = np.unique(np.stack([user, within]), axis=1, return_inverse=True)[1].reshape(-1)
    return Purchases(user, basket, item, time, user_names, item_names)


def _minutes(table: Table, clock: Column) -> Int[np.ndarray, " rows"]:
    """Whole minutes of the clock since the earliest one."""
    days = numbers_of(table, clock)
    for row in np.flatnonzero(np.isnan(days))[:1]:
        raise table.error(clock.name, row, "it has no value, but each purchase needs its time")
    minutes = np.floor(days * MINUTES + 1e-6).astype(np.int64)  # of days since 1970, which are rounded
    return minutes - minutes.min()


def _numbered(table: Table, name: str) -> tuple[tuple[str, ...], Int[np.ndarray, " rows"]]:
    """The texts of a column, in their order, and which one each row has."""
    refuse_nested(table, name)
    values = table.columns[name]
    for row, value in enumerate(values):
        if value is None:
            raise table.error(name, row, f"it has no value, but each purchase needs its {name}")
    texts, numbers = np.unique([as_text(value) for value in values], return_inverse=True)
    return tuple(texts.tolist()), numbers
