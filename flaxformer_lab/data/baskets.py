"""Purchases as baskets, and how they are divided: by time, or by each user's last purchase."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from flaxformer_lab.data.basket_builder import FEATURES
from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.purchases import Purchases, read_purchases
from flaxformer_lab.data.prepare import prepare, quiet
from flaxformer_lab.errors import DataError


@dataclass(frozen=True)
class Baskets:
    """Baskets in the order of time. Items and users are numbered from 0.

    user, time: of each basket. first: where its items begin among `item`, and, at the end, how many there are.
    item_rows: how many rows of the source each item has. item_names, user_names: what the numbers stand for.
    """

    user: Int[np.ndarray, " baskets"]
    time: Int[np.ndarray, " baskets"]
    first: Int[np.ndarray, " baskets_and_one"]
    item: Int[np.ndarray, " events"]
    item_rows: Int[np.ndarray, " items"]
    item_names: tuple[str, ...]
    user_names: tuple[str, ...]

    @property
    def sizes(self) -> Int[np.ndarray, " baskets"]:
        """How many items each basket has."""
        return np.diff(self.first)

    @property
    def basket(self) -> Int[np.ndarray, " events"]:
        """The basket of each event."""
        return np.repeat(np.arange(len(self.user)), self.sizes)

    @property
    def event_times(self) -> Int[np.ndarray, " events"]:
        return self.time[self.basket]

    def items_of(self, basket: int | np.integer) -> Int[np.ndarray, " size"]:
        """In the order of the invoice."""
        return self.item[self.first[basket] : self.first[basket + 1]]

    def keep(self, events: Bool[np.ndarray, " events"]) -> "Baskets":
        """Of all events these; users, items and baskets that are left without any are gone."""
        basket = self.basket[events]
        kept, sizes = np.unique(basket, return_counts=True)
        users, user = np.unique(self.user[kept], return_inverse=True)
        items, item = np.unique(self.item[events], return_inverse=True)
        return Baskets(
            user.astype(np.int32),
            self.time[kept],
            np.concatenate([[0], np.cumsum(sizes)]),
            item.astype(np.int32),
            self.item_rows[items],
            tuple(self.item_names[each] for each in items),
            tuple(self.user_names[each] for each in users),
        )

    def of_users(self) -> list[Int[np.ndarray, " own"]]:
        """The baskets of each user, in the order of time."""
        order = np.argsort(self.user, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.user, minlength=len(self.user_names)))[:-1])


def read_baskets(dataset: str) -> Baskets:
    """All baskets of a file of one's own (`csv:PATH`), or of a data set with the features of `lab_retail`.

    Raises:
        DataError: there is no such data set, it has other features, or the file cannot be read as purchases.
    """
    address = parse_address(dataset)
    if address is not None and address.kind in ("csv", "parquet"):
        return in_order_of_time(read_purchases(address))
    builder = prepare(dataset)
    lacking = [name for name in FEATURES if name not in builder.info.features]
    if lacking:
        raise DataError(
            f"task.dataset={dataset} has no {', '.join(lacking)}; baskets are a file of purchases (csv:PATH), or have "
            f"the features of lab_retail: {', '.join(FEATURES)}"
        )
    with quiet():
        record = builder.as_data_source("train", file_format="array_record")[0]
    names = {
        name: tuple(text.decode("utf-8") for text in record[name]) if name in record else ()
        for name in ("item_name", "user_name")
    }
    first = np.concatenate([[0], np.cumsum(record["size"])])
    items, users = len(record["item_rows"]), int(record["user"].max()) + 1
    return Baskets(
        record["user"],
        record["time"],
        first,
        record["item"],
        record["item_rows"],
        names["item_name"] or tuple(map(str, range(items))),
        names["user_name"] or tuple(map(str, range(users))),
    )


def in_order_of_time(rows: Purchases) -> Baskets:
    """Baskets begin with their first row, and have each item once."""
    begins = np.full(rows.basket.max() + 1, rows.time.max())
    np.minimum.at(begins, rows.basket, rows.time)
    _, first_row = np.unique(rows.basket, return_index=True)
    order = np.lexsort((first_row, begins))
    place = np.argsort(order)[rows.basket]
    by_basket = np.lexsort((rows.time, place))  # rows of the same minute stay in the order of the file
    pairs = place[by_basket].astype(np.int64) * len(rows.item_names) + rows.item[by_basket]
    kept = by_basket[np.sort(np.unique(pairs, return_index=True)[1])]
    return Baskets(
        rows.user[first_row[order]].astype(np.int32),
        begins[order],
        np.concatenate([[0], np.cumsum(np.bincount(place[kept]))]),
        rows.item[kept].astype(np.int32),
        np.bincount(rows.item),
        rows.item_names,
        rows.user_names,
    )


def frequent(baskets: Baskets, rows: int) -> Baskets:
    """Without the items that have fewer rows in the source."""
    return baskets.keep(baskets.item_rows[baskets.item] >= rows)


@dataclass(frozen=True)
class Query:
    """A user whose next basket is asked for. history: the baskets before, in the order of time."""

    user: int
    history: Int[np.ndarray, " before"]
    target: int


def quantile_of_time(baskets: Baskets, share: float) -> float:
    """When this share of all events has happened, in minutes."""
    return float(np.quantile(baskets.event_times, share))


def queries_after(baskets: Baskets, time: float, *, least: int) -> list[Query]:
    """The first basket after `time` of each user with one, and with at least so many until then."""
    found = []
    for user, own in enumerate(baskets.of_users()):
        before = np.searchsorted(baskets.time[own], time, side="right")
        if least <= before < len(own):
            found.append(Query(user, own[:before], int(own[before])))
    return found


def is_first(baskets: Baskets) -> Bool[np.ndarray, " events"]:
    """Whether an event is its user's first purchase of its item."""
    pairs = baskets.user[baskets.basket].astype(np.int64) * len(baskets.item_rows) + baskets.item
    first = np.zeros(len(pairs), bool)
    first[np.unique(pairs, return_index=True)[1]] = True
    return first


def first_purchases(baskets: Baskets, core: int) -> Baskets:
    """Each user's first purchase of each item, of users and items that have at least `core` of them."""
    kept = baskets.keep(is_first(baskets))
    while True:
        counts = (np.bincount(each) for each in (kept.user[kept.basket], kept.item))
        enough = [count[each] >= core for count, each in zip(counts, (kept.user[kept.basket], kept.item), strict=True)]
        if np.all(enough):
            return kept
        kept = kept.keep(np.logical_and(*enough))


def as_bits(items: Int[np.ndarray, " some"], number: int) -> UInt8[np.ndarray, " bytes"]:
    """A set of items as one bit for each."""
    bits = np.zeros(number, bool)
    bits[items] = True
    return np.packbits(bits)
