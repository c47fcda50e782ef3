"""Decoding: symbols drawn one by one from a network's logits, for several texts at once.

A network reads each prompt once (prefill) and keeps a cache; then each symbol costs one decode step. A text that has
filled the context is read again from the last half of it.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from flaxformer_lab.compilation import for_few_rows
from flaxformer_lab.models.network import PureNetwork

Tree = Any  # a pytree of arrays
Symbols = Int[Array, "batch _"]

STRIDE = 16  # symbols drawn in one compiled call: a call costs as much as one symbol of a small network
SHORTEST = 32  # texts are padded to this length times a power of two, each compiled once


class Decoder:
    """One network's two compiled programs: prefill texts, and decode some symbols.

    context: the most symbols that the network sees. temperature: symbols are drawn from softmax(logits / temperature);
    0 takes the most likely one.
    """

    def __init__(self, network: PureNetwork, params: Tree, model_state: Tree, *, context: int, temperature: float):
        self._network, self._variables = network, (params, model_state)
        self._context, self._temperature = context, temperature

    def write(
        self, texts: Sequence[Integer[np.ndarray, "_"]], length: int, seed: int = 0
    ) -> Iterator[Int[np.ndarray, "batch _"]]:
        """Yields `length` symbols that continue each of the texts, a few at a time: [batch, some].

        The symbols of a text depend on the seed and on its index, not on the other texts.

        Raises:
            ValueError: there are no texts, or one of them is empty.
            ConfigError: a symbol is outside the network's vocabulary.
        """
        if not texts or not all(map(len, texts)):
            raise ValueError("each text needs at least one symbol to continue, and there must be at least one text")
        self._network.check_symbols(list(texts))
        known = [text[-self._context :].tolist() for text in texts]
        key = jax.random.key(seed)
        logits, cache = self._read(*self._variables, *self._padded(known))
        written = 0
        while written < length:
            # The last of these steps may leave a text's context; then it is read again before its next symbol.
            room = self._context + 1 - max(map(len, known))
            count = min(STRIDE, length - written, room)
            symbols, logits, cache = self._go_on(*self._variables, logits, cache, key, written, count)
            drawn = np.asarray(symbols)[:, :count]
            yield drawn
            written += count
            known = [text + row.tolist() for text, row in zip(known, drawn, strict=True)]
            full = np.array([len(text) > self._context for text in known])
            if full.any() and written < length:
                half = self._context // 2 or 1
                known = [text[-half:] if over else text for text, over in zip(known, full, strict=True)]
                fresh = self._read(*self._variables, *self._padded(known))
                logits, cache = _chosen(jnp.asarray(full), fresh, (logits, cache))

    def _padded(self, texts: list[list[int]]) -> tuple[Symbols, Int[Array, " batch"]]:
        """Texts as one padded array, whose padding a causal network does not see; and their lengths."""
        doublings = math.ceil(math.log2(max(map(len, texts)) / SHORTEST))
        symbols = np.zeros((len(texts), min(self._context, SHORTEST * 2 ** max(0, doublings))), np.int32)
        for row, text in zip(symbols, texts, strict=True):
            row[: len(text)] = text
        return jnp.asarray(symbols), jnp.asarray([len(text) for text in texts], jnp.int32)

    @functools.cached_property
    def _read(self):
        return jax.jit(self._network.prefill)

    @functools.cached_property
    def _go_on(self):
        def go_on(
            params: Tree,
            model_state: Tree,
            logits: Float[Array, "batch outputs"],
            cache: Tree,
            key: Key[Array, ""],
            first: Int[Array, ""],
            count: Int[Array, ""],
        ) -> tuple[Symbols, Float[Array, "batch outputs"], Tree]:
            """Draws `count` symbols, numbered from `first`; the rest of STRIDE stay 0."""

            def one(number: Int[Array, ""], carry: tuple[Symbols, Array, Tree]):
                written, logits, cache = carry
                symbols = self._drawn(logits, jax.random.fold_in(key, first + number))
                logits, cache = self._network.decode(params, model_state, symbols, cache)
                return written.at[:, number].set(symbols), logits, cache

            empty = jnp.zeros((logits.shape[0], STRIDE), jnp.int32)
            return jax.lax.fori_loop(0, count, one, (empty, logits, cache))

        return jax.jit(go_on, donate_argnums=(2, 3), compiler_options=for_few_rows())

    def _drawn(self, logits: Float[Array, "batch outputs"], key: Key[Array, ""]) -> Int[Array, " batch"]:
        if not self._temperature:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(logits)))
        return jax.vmap(jax.random.categorical)(keys, logits / self._temperature).astype(jnp.int32)


@jax.jit
def _chosen(first: Bool[Array, " batch"], one: Tree, other: Tree) -> Tree:
    """For each example of the batch the leaves of `one` or of `other`; an example may have several rows of a leaf."""

    def pick(a: Array, b: Array) -> Array:
        rows = jnp.repeat(first, len(a) // len(first))
        return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, one, other)
