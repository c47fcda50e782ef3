"""What a user buys next: all items are ranked, from the user's history of baskets or of items."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flaxformer_lab.data.baskets import (
    Baskets,
    as_bits,
    first_purchases,
    frequent,
    in_order_of_time,
    is_first,
    quantile_of_time,
    queries_after,
    read_baskets,
)
from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.columns import Table
from flaxformer_lab.data.own.purchases import new_purchases
from flaxformer_lab.data.own.schema import table_of
from flaxformer_lab.errors import DataError
from flaxformer_lab.functional.metrics import Average, Metrics
from flaxformer_lab.functional.ranking import recall_and_ndcg
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.items import NO_ITEM, ItemEmbedding, ItemHead, valid_tokens
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import NextBasketConfig
from flaxformer_lab.tasks.examples import Arrays, Examples
from flaxformer_lab.tasks.features import content_of_files, warn_of_changed_files
from flaxformer_lab.tasks.task import Batch, Keys, PrimaryMetric, Task

TOP = 10
DAY = 24 * 60  # minutes
NDCG = PrimaryMetric("ndcg", f"NDCG@{TOP}", higher_is_better=True, limits=(0.0, 1.0))
NO_BASKET = -1


@dataclass(frozen=True)
class Histories:
    """What users bought before. lines: where the latest purchase of each stands. inputs: of the network."""

    users: tuple[str, ...]
    lines: Int[np.ndarray, " users"]
    inputs: Batch


@dataclass(frozen=True)
class Sequences:
    """The events of each user, in the order of time, and where they are divided.

    first: where a user's own begin, [users + 1]. item, basket: of each event. until: how many of a user's events train;
    before: how many are known when the test's queries are asked.
    asked: by split, (user, first of the target's events, the one after its last).
    cut: minutes; no event of training is later.
    """

    first: Int[np.ndarray, " users_and_one"]
    item: Int[np.ndarray, " events"]
    basket: Int[np.ndarray, " events"]
    until: Int[np.ndarray, " users"]
    before: Int[np.ndarray, " users"]
    asked: Mapping[str, Int[np.ndarray, "queries 3"]]
    cut: float

    def history(self, user: int | np.integer, until: int | np.integer) -> slice:
        """The events of a user before event number `until` of theirs."""
        return slice(self.first[user], self.first[user] + until)


def divide(baskets: Baskets, config: NextBasketConfig) -> tuple[Baskets, Sequences]:
    """The baskets that a config keeps, and their division into training and queries."""
    if config.split == "last":
        kept = first_purchases(baskets, config.core)
        if not len(kept.item):
            raise DataError(
                f"task.dataset={config.dataset}: no users and items are left with task.core={config.core} first "
                "purchases each; set a smaller number"
            )
        own = kept.of_users()
        lengths = np.array([sum(kept.sizes[each]) for each in own])
        asked = {
            split: np.stack([np.arange(len(own)), lengths - back, lengths - back + 1], axis=1)
            for split, back in (("validation", 2), ("test", 1))
        }
        return kept, _sequences(kept, own, lengths - 2, lengths - 1, asked, float(kept.time.max()))
    kept = frequent(baskets, config.least_rows)
    if not len(kept.item):
        raise DataError(
            f"task.dataset={config.dataset}: no item has task.least_rows={config.least_rows} rows; the most frequent "
            f"one has {baskets.item_rows.max()}; set a smaller number"
        )
    own, cut = kept.of_users(), quantile_of_time(kept, config.cut)
    before = np.array([np.searchsorted(kept.time[each], cut, side="right") for each in own])
    ends = [np.concatenate([[0], np.cumsum(kept.sizes[each])]) for each in own]
    stride = max(1, round(1 / config.held_out))
    held_out = (np.arange(len(own)) % stride == 0) & (before > config.least_baskets)
    trained = before - held_out
    asked = {
        "validation": [
            (user, ends[user][trained[user]], ends[user][before[user]]) for user in np.flatnonzero(held_out)
        ],
        "test": [
            (query.user, ends[query.user][before[query.user]], ends[query.user][before[query.user] + 1])
            for query in queries_after(kept, cut, least=config.least_baskets)
        ],
    }
    asked = {split: np.array(each, np.int64).reshape(-1, 3) for split, each in asked.items()}
    for split, queries in asked.items():
        if not len(queries):
            raise DataError(
                f"task.dataset={config.dataset} has no queries for {split}: nobody has task.least_baskets="
                f"{config.least_baskets} baskets before the cut (task.cut={config.cut:g}) and one that {split} asks for"
            )
    until, known = (
        np.array([end[number] for end, number in zip(ends, each, strict=True)]) for each in (trained, before)
    )
    return kept, _sequences(kept, own, until, known, asked, cut)


def _sequences(baskets: Baskets, own: Sequence[np.ndarray], until, before, asked, cut: float) -> Sequences:
    order = np.concatenate(own)
    item = np.concatenate([baskets.items_of(each) for each in order])
    sizes = np.array([baskets.sizes[each].sum() for each in own])
    first = np.concatenate([[0], np.cumsum(sizes)])
    return Sequences(first, item, np.repeat(order, baskets.sizes[order]), until, before, asked, cut)


@register("task", "next_basket", config=NextBasketConfig)
class NextBasket(Task):
    """The inputs are `items` [batch, events], their `baskets` [batch, events], and the `places` that are asked about.

    Training asks at every token for what follows, or for the masked items; an evaluation for the target after the last.
    metadata: `items`, the names of the items, by number; `content`, a digest of a file of one's own.
    """

    primary_metric = NDCG
    units = ("users", 1)

    def __init__(self, config: NextBasketConfig, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = self._read_metadata() if metadata is None else metadata

    def _read_metadata(self) -> dict[str, Any]:
        kept, _ = self._found
        return {"items": list(kept.item_names)} | content_of_files(self._config.dataset)

    @functools.cached_property
    def _found(self) -> tuple[Baskets, Sequences]:
        """What the data set has, whatever the metadata say."""
        return divide(read_baskets(self._config.dataset), self._config)

    @functools.cached_property
    def divided(self) -> tuple[Baskets, Sequences]:
        """The baskets that the config keeps, and how they are divided.

        Raises:
            DataError: its items are not those of the metadata.
        """
        kept, sequences = self._found
        warn_of_changed_files(self._config.dataset, self.metadata)
        known = self.metadata["items"]
        if list(kept.item_names) != known:
            differing = sorted(set(kept.item_names) ^ set(known))
            raise DataError(
                f"task.dataset={self._config.dataset} has other items than this run was trained with, like "
                f"{differing[0]}; restore the files, or train a new run on them"
            )
        return kept, sequences

    @property
    def num_items(self) -> int:
        return len(self.metadata["items"])

    @property
    def _baskets(self) -> int | None:
        """How many tokens there are, where they are baskets."""
        return self._config.baskets if self._config.tokens == "basket" else None

    @property
    def _tokens(self) -> int:
        if self._config.tokens == "basket":
            return self._config.baskets
        return self._config.events

    @property
    def _masks(self) -> bool:
        return self._config.objective == "masked"

    # ----------------------------------------------------------------------------------------------- examples

    def examples(self, split: str) -> Examples:
        arrays = self._training() if split == "train" else self._queries(split)

        def take(arrays: Arrays, rows: Any) -> Arrays:
            return {name: array[rows] for name, array in arrays.items()}

        return Examples(
            number=len(arrays["items"]),
            num_bytes=sum(array.nbytes for array in arrays.values()),
            load=lambda: arrays,
            take=take,
            read=lambda rows: take(arrays, rows),
        )

    def _training(self) -> Arrays:
        """Every user's training events in windows, from the last one back; each event is asked about in one of them.

        Of what comes next, a window has one event more than the network sees: so the network's last place is trained,
        which an evaluation asks (Kang and McAuley 2018, SASRec, section 3.1).
        """
        baskets, sequences = self.divided
        more = 0 if self._masks else 1
        windows, weights = [], []
        for user, until in enumerate(sequences.until):
            end = until
            while end > 0:
                own = sequences.history(user, end)
                items, numbers = window(sequences.item[own], sequences.basket[own], self._config, more)
                asked = self._asked(numbers)
                if asked:
                    windows.append((items, numbers))
                    weights.append(self._weights(baskets.time[numbers], sequences.cut))
                end -= asked or len(items)
        size, empty = self._config.events + more, np.zeros((len(windows), 0), np.uint8)
        return self._stored(windows, size) | {
            "event_weights": _padded(weights, size, 0, np.float32),
            "seen": empty,
            "target": empty,
        }

    def _asked(self, numbers: Int[np.ndarray, " events"]) -> int:
        """How many events of a window are asked about: those after its first basket or item; any may be masked."""
        if self._config.tokens == "basket":
            return int(np.sum(numbers != numbers[0]))
        return len(numbers) if self._masks and len(numbers) > 1 else len(numbers) - 1

    def _weights(self, times: Int[np.ndarray, " events"], cut: float) -> Float[np.ndarray, " events"]:
        if self._config.half_life is None:
            return np.ones(len(times))
        return 0.5 ** ((cut - times) / DAY / self._config.half_life)

    def _queries(self, split: str) -> Arrays:
        _, sequences = self.divided
        windows, seen, target = [], [], []
        for user, begin, end in sequences.asked[split]:
            own, offset = sequences.history(user, begin), sequences.first[user]
            windows.append(self._known(sequences.item[own], sequences.basket[own]))
            seen.append(as_bits(sequences.item[own], self.num_items))
            target.append(as_bits(sequences.item[offset + begin : offset + end], self.num_items))
        stored = self._stored(windows, self._config.events)
        stored["event_weights"] = np.zeros(stored["items"].shape, np.float32)
        return stored | {"seen": np.stack(seen), "target": np.stack(target)}

    def _known(self, items: np.ndarray, baskets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The window that an evaluation sees of a history, which leaves a place for the mask."""
        return window(items, baskets, self._config, -1 if self._masks else 0)

    def _stored(self, windows: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> Arrays:
        """Items from 1 on, and the number of each one's basket within the window."""
        items = _padded([items + 1 for items, _ in windows], size, NO_ITEM, np.int32)
        numbers = [np.cumsum(np.diff(basket, prepend=basket[:1]) != 0) for _, basket in windows]
        return {"items": items, "baskets": _padded(numbers, size, NO_BASKET, np.int32)}

    # ------------------------------------------------------------------------------------------------ network

    def network(self, config: ModelConfig) -> PureNetwork:
        own, items = self._config, self.num_items

        def build(rngs: Rngs) -> Network:
            symbols = 1 + items + self._masks
            return ItemNetwork(
                config,
                embedding=ItemEmbedding(symbols, config.width, tokens=self._baskets, dtype=config.dtype, rngs=rngs),
                grid=(self._tokens,),
                outputs=items,
                head=ItemHead(
                    items,
                    config.width,
                    ages=own.baskets if own.repeats else 0,
                    tied=own.tied,
                    bias=config.bias,
                    rngs=rngs,
                ),
                rngs=rngs,
            )

        return functionalize(build)

    def prepare(self, examples: Batch, keys: Keys, *, training: bool) -> Batch:
        if training or not examples["target"].shape[1]:
            asked = self._masked(examples, keys) if self._masks else self._next(examples)
            return asked | {"loss_weights": asked["loss_weights"] * examples["example_weight"][:, None]}
        bits = {
            name: jnp.unpackbits(examples[name], axis=1, count=self.num_items).astype(bool)
            for name in ("seen", "target")
        }
        return self._asking(examples) | bits | {"loss_weights": examples["example_weight"]}

    def _asking(self, examples: Batch) -> Batch:
        """Inputs that ask for what follows a history: at its last token, or at a mask after it."""
        items, baskets = _items_and_baskets(examples)
        number = jnp.sum(items != NO_ITEM, axis=1)
        last = jnp.max(baskets, axis=1) if self._config.tokens == "basket" else number - 1
        if self._masks:
            last = number
            items = items.at[jnp.arange(len(items)), last].set(self.num_items + 1)
        return self._inputs(items, baskets, jnp.maximum(last, 0)[:, None])

    def _inputs(
        self, items: Int[Array, "batch events"], baskets: Int[Array, "batch events"], places: Int[Array, "batch _"]
    ) -> Batch:
        inputs = {"items": items, "baskets": baskets, "places": places}
        return {"inputs": inputs, "valid": valid_tokens(inputs, self._baskets)}

    def _next(self, examples: Batch) -> Batch:
        """Each event is predicted at the token before it: the item before, or the basket before, which counts once."""
        items, baskets = _items_and_baskets(examples)
        targets, number = items[:, 1:], len(items)
        places = jnp.broadcast_to(jnp.arange(self._tokens)[None], (number, self._tokens))
        if self._config.tokens == "item":
            at, shares = places, 1.0
        else:
            at = jnp.maximum(baskets[:, 1:] - 1, 0)
            sizes = jnp.sum(baskets[:, 1:, None] == baskets[:, None, :], axis=2)
            shares = jnp.where(baskets[:, 1:] > 0, 1 / sizes, 0)
        weights = jnp.where(targets != NO_ITEM, shares, 0) * examples["event_weights"][:, 1:]
        asked = {"targets": targets, "at": at, "loss_weights": weights}
        return self._inputs(items[:, :-1], baskets[:, :-1], places) | asked

    def _masked(self, examples: Batch, keys: Key[Array, " batch"]) -> Batch:
        """Hides a share of the items, at least one (Sun et al. 2019, BERT4Rec, section 3.6)."""
        items, baskets = _items_and_baskets(examples)
        events, rate = items.shape[1], self._config.mask_rate
        number = max(1, round(rate * events))

        def hide(items: Int[Array, " events"], key: Key[Array, ""]) -> tuple[Array, Array, Array]:
            valid = items != NO_ITEM
            order = jnp.argsort(jnp.where(valid, jax.random.uniform(key, items.shape), 2.0))[:number]
            hidden = jnp.arange(number) < jnp.maximum(1, jnp.round(rate * jnp.sum(valid)))
            return items.at[jnp.where(hidden, order, events)].set(self.num_items + 1, mode="drop"), order, hidden

        masked, order, hidden = jax.vmap(hide)(items, keys)
        targets, weights = (jnp.take_along_axis(each, order, axis=1) for each in (items, examples["event_weights"]))
        at = jnp.broadcast_to(jnp.arange(number)[None], order.shape)
        return self._inputs(masked, baskets, order) | {"targets": targets, "at": at, "loss_weights": hidden * weights}

    def loss_and_metrics(self, scores: Float[Array, "batch places items"], batch: Batch) -> Metrics:
        weights = batch["loss_weights"]
        if "target" not in batch:
            rows = jnp.arange(len(scores))[:, None]
            target = scores[rows, batch["at"], jnp.maximum(batch["targets"] - 1, 0)]
            losses = jax.nn.logsumexp(scores, axis=-1)[rows, batch["at"]] - target
            return {"loss": Average(jnp.sum(losses * weights), jnp.sum(weights))}
        scores, target, seen = scores[:, 0], batch["target"], batch["seen"]
        size = jnp.maximum(jnp.sum(target, axis=1), 1)
        losses = jax.nn.logsumexp(scores, axis=1) - jnp.sum(jnp.where(target, scores, 0), axis=1) / size
        new = target & ~seen
        # Where no target has anything new, the value is 0: a NaN would end a run.
        with_new = weights * jnp.any(new, axis=1) + 1e-30
        recall, ndcg = recall_and_ndcg(scores, target, TOP)
        recall_new, ndcg_new = recall_and_ndcg(jnp.where(seen, -jnp.inf, scores), new, TOP)
        pairs = {
            "loss": (losses, weights),
            "recall": (recall, weights),
            "ndcg": (ndcg, weights),
            "recall_new": (recall_new, with_new),
            "ndcg_new": (ndcg_new, with_new),
        }
        return {name: Average(jnp.sum(values * each), jnp.sum(each)) for name, (values, each) in pairs.items()}

    # --------------------------------------------------------------------------------------------- new purchases

    def histories_in(self, table: Table) -> "Histories":
        """The users of a table of purchases, by their first rows, with what they bought, as an evaluation has it.

        An item that training has not seen is left out; a user of whom nothing is left is ranked all the same.

        Raises:
            ConfigError, DataError: as `new_purchases`.
        """
        rows = new_purchases(table, parse_address(self._config.dataset))
        baskets = in_order_of_time(rows)
        number = {name: place for place, name in enumerate(self.metadata["items"])}
        item = np.array([number.get(name, -1) for name in baskets.item_names])[baskets.item]
        kept = (item >= 0) & (is_first(baskets) if self._config.split == "last" else True)
        user = baskets.user[baskets.basket]
        events = np.argsort(user, kind="stable")
        events = events[kept[events]]
        own = np.split(events, np.searchsorted(user[events], np.arange(1, len(rows.user_names))))
        users = np.argsort(np.unique(rows.user, return_index=True)[1])
        windows = [self._known(item[own[each]], baskets.basket[own[each]]) for each in users]
        stored = self._stored(windows, self._config.events)
        inputs = self._asking(jax.tree.map(jnp.asarray, stored))["inputs"]
        last = np.empty(len(users), np.int64)
        by_time = np.argsort(rows.time, kind="stable")
        last[rows.user[by_time]] = by_time
        return Histories(tuple(rows.user_names[each] for each in users), table.lines[last[users]], inputs)

    def inputs_of(self, raw: Any) -> Any:
        """The inputs of purchases: a CSV file, or a mapping of lists with `user`, `item`, and `basket` or a time."""
        if isinstance(raw, str | Path) or (isinstance(raw, Mapping) and "item" in raw):
            return self.histories_in(table_of(raw, parse_address(self._config.dataset))).inputs
        return raw

    def predictions_of(self, outputs: Float[Array, "batch 1 items"]) -> Float[Array, "batch items"]:
        return outputs[:, 0]

    def outputs_of(self, predictions: Float[Array, "batch items"]) -> Float[Array, "batch 1 items"]:
        return predictions[:, None]

    def input_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        sizes = {"items": self._config.events, "baskets": self._config.events, "places": 1}
        return {name: jax.ShapeDtypeStruct((batch_size, size), jnp.int32) for name, size in sizes.items()}


def window(
    items: Int[np.ndarray, " events"], baskets: Int[np.ndarray, " events"], config: NextBasketConfig, more: int
) -> tuple[Int[np.ndarray, " last"], Int[np.ndarray, " last"]]:
    """The last events that fit an example, and so many `more`, with the basket of each."""
    items, baskets = items[-config.events - more :], baskets[-config.events - more :]
    number = np.cumsum(np.diff(baskets, prepend=baskets[:1]) != 0)
    fits = number > number[-1] - config.baskets - more if len(number) else slice(None)
    return items[fits], baskets[fits]


def _items_and_baskets(examples: Batch) -> tuple[Int[Array, "batch events"], Int[Array, "batch events"]]:
    return jnp.asarray(examples["items"], jnp.int32), jnp.asarray(examples["baskets"], jnp.int32)


def _padded(rows: Sequence[np.ndarray], size: int, filling: int, dtype: Any) -> np.ndarray:
    padded = np.full((len(rows), size), filling, dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


class ItemNetwork(Network):
    """A network that sees by itself what fills up, and whose head is given the inputs and the embedding's items."""

    def __call__(self, inputs: Any, *, valid: Any = None, **options: Any) -> Float[Array, "batch places items"]:
        return super().__call__(inputs, valid=self.embedding.valid(inputs) if valid is None else valid, **options)

    def _head(self, x: Array, inputs: Any) -> Array:
        return self.head(x, inputs, self.embedding.table)
