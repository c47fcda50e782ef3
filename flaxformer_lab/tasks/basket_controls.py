"""Rankings that need no gradient: popularity, a user's own habits, transitions, and EASE: the bar for a model."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.ranking import recall_and_ndcg
from flaxformer_lab.modules.items import NO_ITEM
from flaxformer_lab.parsing import nearest
from flaxformer_lab.registry import register
from flaxformer_lab.tasks.baskets import DAY, TOP, NextBasket, Sequences
from flaxformer_lab.tasks.controls import Control, Fit

CONTROLS = ("popularity", "recent_popularity", "personal", "markov", "ease")
RECENT_DAYS = 30
DECAY = 0.8  # of a purchase, for each basket since
PENALTY = 500.0  # of EASE
CHUNK = 256  # queries that are ranked at once

# history: the items and the baskets of a user's events, in the order of time
Scores = Callable[[Int[np.ndarray, " events"], Int[np.ndarray, " events"]], Float[np.ndarray, " items"]]


def fit(task: NextBasket, name: str, split: str = "test") -> Scores:
    """A control that has seen all that is known when a split's queries are asked.

    popularity: how often an item was bought. recent_popularity: in the last 30 days. personal: how often by the user,
    with 0.8 for each basket since; equal ones by recent popularity (Li et al. 2023). markov: how often an item came
    right after the user's last one. ease: a linear model of items, each without itself, in closed form (Steck 2019,
    eq. 8).

    Raises:
        ConfigError: no such control.
    """
    if name not in CONTROLS:
        raise ConfigError(f"{name} is no control: {nearest(name, CONTROLS)}choose from {', '.join(CONTROLS)}")
    baskets, sequences = task.divided
    known = _known(sequences, split)
    items, number = sequences.item[known], task.num_items
    popular = np.bincount(items, minlength=number).astype(float)
    if name == "popularity":
        return lambda own, when: popular
    recent = baskets.time[sequences.basket[known]] > sequences.cut - RECENT_DAYS * DAY
    recently = np.bincount(items[recent], minlength=number).astype(float)
    if name == "recent_popularity":
        return lambda own, when: recently
    if name == "personal":
        return lambda own, when: _habits(own, when, number) + 1e-9 * recently
    users = np.repeat(np.arange(len(sequences.until)), np.diff(sequences.first))[known]
    if name == "markov":
        follows = _transitions(items, users, number)
        return lambda own, when: follows(own[-1]) if len(own) else popular
    weights = _ease(items, users, number)
    return lambda own, when: weights[np.unique(own)].sum(axis=0)


def _known(sequences: Sequences, split: str) -> Int[np.ndarray, " events"]:
    """The events before the queries of a split: all of them at the cut, or those that train."""
    known = sequences.until.copy()
    if split == "test":
        known = np.maximum(known, sequences.before)
    return np.concatenate([np.arange(first, first + k) for first, k in zip(sequences.first[:-1], known, strict=True)])


def _habits(own: np.ndarray, when: np.ndarray, number: int) -> Float[np.ndarray, " items"]:
    ago = np.cumsum(np.diff(when, prepend=when[:1]) != 0)
    return np.bincount(own, DECAY ** (ago.max(initial=0) - ago), minlength=number)


def _transitions(items: np.ndarray, users: np.ndarray, number: int) -> Callable[[int], Float[np.ndarray, " items"]]:
    same = users[1:] == users[:-1]
    before, after = items[:-1][same], items[1:][same]
    order = np.argsort(before, kind="stable")
    first = np.searchsorted(before[order], np.arange(number + 1))
    after = after[order]
    return lambda item: np.bincount(after[first[item] : first[item + 1]], minlength=number).astype(float)


def _ease(items: np.ndarray, users: np.ndarray, number: int) -> Float[np.ndarray, "items items"]:
    bought = np.zeros((users.max() + 1, number), np.float32)
    bought[users, items] = 1
    gram = (bought.T @ bought).astype(np.float64) + PENALTY * np.eye(number)
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def evaluate(task: NextBasket, scores: Scores, split: str = "test") -> dict[str, float]:
    """The task's metrics of a split."""
    _, sequences = task.divided
    values: dict[str, list[np.ndarray]] = {name: [] for name in ("recall", "ndcg", "recall_new", "ndcg_new")}
    asked, measure = sequences.asked[split], jax.jit(recall_and_ndcg, static_argnums=2)
    for first in range(0, len(asked), CHUNK):
        chunk = asked[first : first + CHUNK]
        ranked = np.zeros((len(chunk), task.num_items))
        target, seen = np.zeros((2, len(chunk), task.num_items), bool)
        for row, (user, begin, end) in enumerate(chunk):
            own = sequences.history(user, begin)
            ranked[row] = scores(sequences.item[own], sequences.basket[own])
            seen[row, sequences.item[own]] = True
            target[row, sequences.item[sequences.first[user] + begin : sequences.first[user] + end]] = True
        new = target & ~seen
        with_new = new.any(axis=1)
        for suffix, each, relevant, kept in (
            ("", ranked, target, slice(None)),
            ("_new", np.where(seen, -np.inf, ranked), new, with_new),
        ):
            # float32 would tie what float64 tells apart: ranks stand for the scores.
            order = np.argsort(np.argsort(-each, axis=1, kind="stable"), axis=1)
            recall, ndcg = measure(-order[kept].astype(np.float32), relevant[kept], TOP)
            values[f"recall{suffix}"].append(np.asarray(recall))
            values[f"ndcg{suffix}"].append(np.asarray(ndcg))
    return {name: float(np.mean(np.concatenate(each))) for name, each in values.items()}


def _rank(task: NextBasket, scores: Scores) -> Callable[[Any], Float[np.ndarray, "batch 1 items"]]:
    """From prepared inputs to the negative ranks of all items; a mask among the inputs is nothing that was bought."""

    def predict(inputs: Any) -> Float[np.ndarray, "batch 1 items"]:
        rows = []
        for items, when in zip(inputs["items"], inputs["baskets"], strict=True):
            own = (items != NO_ITEM) & (items <= task.num_items)
            rows.append(scores(items[own] - 1, when[own]))
        ranks = np.argsort(np.argsort(-np.stack(rows), axis=1, kind="stable"), axis=1)
        return -ranks[:, None].astype(np.float32)  # in float32 the scores themselves would tie

    return predict


def _control(name: str) -> Control:
    """A control as a row of an ablation: it sees of a history what the model sees (`task.events`, `task.baskets`)."""

    def fitted(task: NextBasket, seed: int, rate: float) -> Fit:
        del seed, rate
        # Each split's queries are asked at another time: what validation asks for is known when test asks.
        return Fit(_rank(task, fit(task, name, "test")), on_validation=_rank(task, fit(task, name, "validation")))

    return fitted


for _name in CONTROLS:
    register("control", _name, fits=("next_basket",), rates=(1.0,), drawn=False)(_control(_name))
