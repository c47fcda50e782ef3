"""`csv:PATH` and `parquet:PATH` as purchases: who bought what, when, and in which basket."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from flaxformer_lab.data.own.address import Address
from flaxformer_lab.data.own.columns import Table, as_text, column_of, numbers_of
from flaxformer_lab.data.own.series import time_column
from flaxformer_lab.data.own.tables import choices_of, read_table
from flaxformer_lab.errors import ConfigError, DataError

NAMES = ("user", "basket", "item")
OPTIONS = ("dates", "day_first", "delimiter")  # those that say how the file is read
MINUTES = 24 * 60  # of a day


@dataclass(frozen=True)
class Purchases:
    """The rows of a file; users, baskets and items are numbered from 0.

    time: minutes since the first row. user_names, item_names: what the numbers stand for.
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
    table, choices = read_table(address), choices_of(address)
    lacking = [name for name in ("user", "item") if name not in table.columns]
    if lacking:
        raise DataError(
            f"{table.path} has no column {' and no column '.join(lacking)}: purchases have the columns user, item and "
            f"a time, and basket where they have one; it has {', '.join(table.columns)}"
        )
    when = time_column(table, choices, "purchases", [name for name in table.columns if name not in NAMES])
    days = numbers_of(table, column_of(table, when, choices))
    for row in np.flatnonzero(np.isnan(days))[:1]:
        raise table.error(when, row, "it has no value, but each purchase needs its time")
    time = np.floor((days - days.min()) * MINUTES + 1e-3).astype(np.int64)
    (user_names, user), (item_names, item) = (_numbered(table, name) for name in ("user", "item"))
    within = _numbered(table, "basket")[1] if "basket" in table.columns else time
    basket = np.unique(np.stack([user, within]), axis=1, return_inverse=True)[1].reshape(-1)
    return Purchases(user, basket, item, time, user_names, item_names)


def _numbered(table: Table, name: str) -> tuple[tuple[str, ...], Int[np.ndarray, " rows"]]:
    """The texts of a column, in their order, and which one each row has."""
    values = table.columns[name]
    for row, value in enumerate(values):
        if value is None:
            raise table.error(name, row, f"it has no value, but each purchase needs its {name}")
    texts, numbers = np.unique([as_text(value) for value in values], return_inverse=True)
    return tuple(texts.tolist()), numbers
