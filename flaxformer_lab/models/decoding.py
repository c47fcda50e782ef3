"""Decoding: symbols drawn one by one from a network's logits, for several texts at once.

A network reads each prompt once (prefill) and keeps a cache; then each symbol costs one decode step. A text that has
filled the context is read again from the last half of it. Symbols are drawn in strides: one compiled call of STRIDE
steps. How far each text is depends on lengths alone, so the next stride is asked for before the last one is looked at,
and the device does not wait.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from flaxformer_lab.compilation import for_few_rows
from flaxformer_lab.functional.platform import target_platform
from flaxformer_lab.models.narrowing import narrowed
from flaxformer_lab.models.network import PureNetwork

Tree = Any  # a pytree of arrays
Symbols = Int[Array, "rows _"]

STRIDE = 16  # symbols drawn in one compiled call: a call costs as much as one symbol of a small network
SHORTEST = 32  # texts are padded to this length times a power of two, each compiled once
FEWEST_SLOTS = 256  # a cache has room for this number of tokens times a power of two, each compiled once
BATCH_SIZE = 64  # texts at once
# Of a single row XLA for GPUs makes sums of products instead of matrix products: more kernels, and all products of a
# matrix are written before they are summed.
FEWEST_ROWS = {"gpu": 2}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """What a stride continues, one row a text.

    known: symbols since the text was last read. length: how many these are. text, drawn: which text it is and how many
    symbols of it are drawn; the next draw depends on both.
    """

    cache: Tree
    logits: Float[Array, "rows outputs"]
    known: Int[Array, "rows context"]
    length: Int[Array, " rows"]
    text: Int[Array, " rows"]
    drawn: Int[Array, " rows"]


@dataclass
class _Row:
    """A text as far as the host knows it without looking at what is drawn.

    unread: the symbols to read it from; None where they are the last half of those that the device knows.
    """

    text: int
    length: int
    unread: Integer[np.ndarray, "_"] | None
    drawn: int = 0
    is_read: bool = False


class Decoder:
    """One network's compiled programs: read texts, and draw some symbols.

    context: the most symbols that the network sees. temperature: symbols are drawn from softmax(logits / temperature);
    0 takes the most likely one. batch_size: the most texts at once; others wait until one of these is finished.
    """

    def __init__(
        self,
        network: PureNetwork,
        params: Tree,
        model_state: Tree,
        *,
        context: int,
        temperature: float,
        batch_size: int = BATCH_SIZE,
    ):
        self._network, self._given = network, (params, model_state)
        self._context, self._temperature, self._batch_size = context, temperature, batch_size
        self._half = context // 2 or 1  # what a full text is read again from
        self._stride = min(STRIDE, context + 1 - self._half)

    def write(
        self, texts: Sequence[Integer[np.ndarray, "_"]], length: int, seed: int = 0
    ) -> Iterator[list[Int[np.ndarray, "_"]]]:
        """Yields `length` symbols that continue each of the texts, a few at a time: a piece of each, often empty.

        The symbols of a text depend on the seed and on its index, not on the other texts.

        Raises:
            ValueError: there are no texts, or one of them is empty.
            ConfigError: a symbol is outside the network's vocabulary.
        """
        if not texts or not all(map(len, texts)):
            raise ValueError("each text needs at least one symbol to continue, and there must be at least one text")
        self._network.check_symbols(list(texts))
        waiting = collections.deque((i, text[-self._context :]) for i, text in enumerate(texts))
        size = max(min(len(texts), self._batch_size), FEWEST_ROWS.get(target_platform(), 1))
        rows: list[_Row | None] = [None] * size
        key, state, room, asked = jax.random.key(seed), None, 0, []
        while True:
            for number, row in enumerate(rows):
                if row is None or row.drawn == length:
                    rows[number] = _Row(waiting[0][0], len(waiting[0][1]), waiting.popleft()[1]) if waiting else None
                elif row.length > self._context:
                    rows[number] = _Row(row.text, self._half, None, row.drawn)
            if any(rows):
                needed = self._room(max(row.length for row in rows if row) + self._stride)
                if state is not None and needed > room:
                    state = self._grow(*self._variables, state, room=needed)
                room = max(room, needed)
                for group in _groups(rows):
                    state = self._read_group(state, rows, group, room)
                symbols, state = self._go_on(*self._variables, key, state)
                asked.append((symbols, self._advance(rows, length)))
            if not asked:
                return
            if len(asked) > 1 or not any(rows):
                yield _pieces(*asked.pop(0), len(texts))

    def _advance(self, rows: list[_Row | None], length: int) -> dict[int, tuple[int, int]]:
        """Counts a stride in; returns the row of each text, and how many of the symbols drawn there count."""
        counts = {}
        for number, row in enumerate(rows):
            if row:
                # What follows the last symbol of a text or of its context is drawn in vain.
                count = min(self._stride, length - row.drawn, self._context + 1 - row.length)
                row.length, row.drawn = row.length + count, row.drawn + count
                counts[row.text] = number, count
        return counts

    def _room(self, length: int) -> int:
        return min(self._context, _doubled(FEWEST_SLOTS, length))

    def _read_group(self, state: _State | None, rows: list[_Row | None], group: list[int], room: int) -> _State:
        """The state with the rows of a group read, together or one alone."""
        size = len(rows) if _together(len(group), rows) else 1
        where = np.full(size, len(rows), np.int32)  # no row, for what pads the group
        where[: len(group)] = group
        lengths, texts, drawn = np.ones((3, size), np.int32)
        for i, row in enumerate(rows[number] for number in group):
            lengths[i], texts[i], drawn[i], row.is_read = row.length, row.text, row.drawn, True
        padded = min(self._context, _doubled(SHORTEST, int(max(lengths))))
        if rows[group[0]].unread is None:
            symbols = self._last_half(state.known, jnp.asarray(where), size=padded)
        else:
            symbols = np.zeros((size, padded), np.int32)
            for i, number in enumerate(group):
                symbols[i, : lengths[i]] = rows[number].unread
        numbers = map(jnp.asarray, (symbols, lengths, texts, drawn))
        fresh = self._read(*self._variables, *numbers, room=room)
        return fresh if state is None else self._insert(state, fresh, jnp.asarray(where))

    @functools.cached_property
    def _variables(self) -> tuple[Tree, Tree]:
        """The parameters in the types in which they are read, cast once."""

        def read_and_go_on(params: Tree, model_state: Tree, symbols: Array, lengths: Array) -> tuple[Array, Tree]:
            _, cache = self._network.prefill(params, model_state, symbols, lengths)
            return self._network.decode(params, model_state, symbols[:, 0], cache)

        params, model_state = self._given
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
        return narrowed(read_and_go_on, params, model_state, *one), model_state

    @functools.cached_property
    def _read(self):
        @functools.partial(jax.jit, static_argnames="room")
        def read(
            params: Tree, model_state: Tree, symbols: Array, length: Array, text: Array, drawn: Array, *, room: int
        ) -> _State:
            logits, cache = self._network.prefill(params, model_state, symbols, length, room=room)
            known = jnp.pad(symbols, ((0, 0), (0, self._context + 1 - symbols.shape[1])))
            return _State(cache, logits, known, length, text, drawn)

        return read

    @functools.cached_property
    def _last_half(self):
        @functools.partial(jax.jit, static_argnames="size")
        def last_half(known: Int[Array, "rows known"], where: Int[Array, " group"], *, size: int) -> Symbols:
            symbols = known[where, self._context + 1 - self._half :]
            return jnp.pad(symbols, ((0, 0), (0, size - self._half)))

        return last_half

    @functools.cached_property
    def _grow(self):
        @functools.partial(jax.jit, static_argnames="room")
        def grow(params: Tree, model_state: Tree, state: _State, *, room: int) -> _State:
            """The state with more slots in its cache, which no token has filled yet."""
            prefill = functools.partial(self._network.prefill, room=room)
            _, larger = jax.eval_shape(prefill, params, model_state, state.known[:, :1], state.length)

            def padded(leaf: Array, shape: jax.ShapeDtypeStruct) -> Array:
                return jnp.pad(leaf, [(0, to - size) for size, to in zip(leaf.shape, shape.shape, strict=True)])

            return dataclasses.replace(state, cache=jax.tree.map(padded, state.cache, larger))

        return grow

    @functools.cached_property
    def _go_on(self):
        def go_on(params: Tree, model_state: Tree, key: Key[Array, ""], state: _State) -> tuple[Symbols, _State]:
            """Draws a stride of symbols for each row."""

            def one(carry: tuple[Array, Tree], number: Int[Array, ""]) -> tuple[tuple[Array, Tree], Array]:
                logits, cache = carry
                symbols = self._drawn(logits, key, state.text, state.drawn + number)
                return self._network.decode(params, model_state, symbols, cache), symbols

            # Of a loop whose number of steps is known the host need not ask a GPU after each step whether it goes on.
            steps = jnp.arange(self._stride)
            (logits, cache), symbols = jax.lax.scan(one, (state.logits, state.cache), steps)
            rows, places = jnp.arange(len(logits))[:, None], state.length[:, None] + steps[None]
            known = state.known.at[rows, places].set(symbols.T, mode="drop")
            counts = {"length": state.length + self._stride, "drawn": state.drawn + self._stride}
            return symbols.T, dataclasses.replace(state, cache=cache, logits=logits, known=known, **counts)

        return jax.jit(go_on, donate_argnums=3, compiler_options=for_few_rows())

    def _drawn(self, logits: Float[Array, "rows outputs"], key: Key[Array, ""], text: Array, number: Array) -> Array:
        """The next symbol of each row, symbol `number` of its text."""
        if not self._temperature:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        def draw(logits: Float[Array, " outputs"], text: Int[Array, ""], number: Int[Array, ""]) -> Int[Array, ""]:
            of_text = jax.random.fold_in(jax.random.fold_in(key, number), text)
            return jax.random.categorical(of_text, logits / self._temperature).astype(jnp.int32)

        return jax.vmap(draw)(logits, text, number)

    @functools.cached_property
    def _insert(self):
        @functools.partial(jax.jit, donate_argnums=0)
        def insert(state: _State, fresh: _State, where: Int[Array, " group"]) -> _State:
            """The state with the rows of `fresh` at these places; an example may have several rows of a leaf."""

            def put(old: Array, new: Array) -> Array:
                each = len(old) // len(state.length)
                places = where[:, None] * each + jnp.arange(each)[None]
                return old.at[places.reshape(-1)].set(new, mode="drop")

            return jax.tree.map(put, state, fresh)

        return insert


def _together(number: int, rows: list[_Row | None]) -> bool:
    """Whether so many rows are read in one call of all rows, and not one by one: there are two programs."""
    return 4 * number > len(rows)


def _groups(rows: list[_Row | None]) -> Iterator[list[int]]:
    """The rows that are to be read, those that are read together in one list."""
    for again in (True, False):
        unread = [i for i, row in enumerate(rows) if row and not row.is_read and (row.unread is None) == again]
        yield from [unread] if _together(len(unread), rows) else [[number] for number in unread]


def _doubled(size: int, least: int) -> int:
    """`size` times the power of two with which it is at least `least`."""
    return size * 2 ** max(0, math.ceil(math.log2(least / size)))


def _pieces(symbols: Symbols, counts: dict[int, tuple[int, int]], texts: int) -> list[Int[np.ndarray, "_"]]:
    """What was drawn of each text; waits for it."""
    drawn, pieces = np.asarray(symbols), [np.zeros(0, np.int32)] * texts
    for text, (number, count) in counts.items():
        pieces[text] = drawn[number, :count]
    return pieces
