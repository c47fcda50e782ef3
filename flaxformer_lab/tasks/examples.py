"""Numbered examples of a split: how a row number becomes an example, in host memory, on the device, or from disk."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt

from flaxformer_lab.data.order import positions, start_offset
from flaxformer_lab.data.source import Source

Arrays = dict[str, Any]  # NumPy arrays on the host, JAX arrays on the device
DEVICE_BYTES = 2**30  # examples up to this size live on the device
HOST_BYTES = 2**32  # records up to this size stay in host memory once they are decoded
CHECKED_BYTES = (
    2**28
)  # splits up to this size are decoded, checked and kept when a run begins, larger ones as they are read


@dataclass(frozen=True)
class Examples:
    """A split's examples.

    number: how many there are in one epoch. num_bytes: what `load()` holds.
    load(): the arrays behind all examples. take(arrays, rows): the examples at `rows`, the same for NumPy and JAX.
    read(rows): the examples at `rows` without `load()`, for data that does not fit.
    stride: rows from one example to the next. Training shifts all of an epoch's rows by less than one stride.
    endless: training takes new row numbers in each epoch instead of repeating examples.
    """

    number: int
    num_bytes: int
    load: Callable[[], Arrays]
    take: Callable[[Arrays, Any], Arrays]
    read: Callable[[Int[np.ndarray, " batch"]], Arrays]
    stride: int = 1
    endless: bool = False

    def lives_on_device(self, wanted: str = "auto") -> bool:
        """Whether all examples are on the device at once; wanted: as `training.input` says."""
        return wanted == "device" or (wanted == "auto" and self.num_bytes <= DEVICE_BYTES)

    def training_indices(self, seed: int, step: int, batch_size: int) -> Int[np.ndarray, " batch"]:
        """Rows of the batch of update number `step`: a function of seed and step alone."""
        if self.endless:
            # Numbers below 2**30, so that evaluation can use the numbers above.
            return (np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64) % 2**30).astype(np.int32)
        epochs, indices = positions(seed, step, batch_size, self.number)
        shift = {int(epoch): start_offset(seed, int(epoch), self.stride) for epoch in np.unique(epochs)}
        return self.evaluation_indices(indices) + np.array([shift[int(epoch)] for epoch in epochs], np.int32)

    def evaluation_indices(self, indices: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        """Rows of examples in the order of the data."""
        return (indices * self.stride).astype(np.int32)


def stored_examples(source: Source, check: Callable[[Arrays, Any], None] | None = None) -> Examples:
    """Every record of a data set is an example.

    check(arrays, rows): raises where an example at one of the rows cannot be used. A small split is checked here.
    """
    read = _decoded_once(source) if source.num_bytes() <= HOST_BYTES else source.read

    def take(arrays: Arrays, rows: Any) -> Arrays:
        return jax.tree.map(lambda array: array[rows], arrays)

    def checked(arrays: Arrays, rows: Any) -> Arrays:
        if check:
            check(arrays, rows)
        return arrays

    examples = Examples(
        number=len(source),
        num_bytes=source.num_bytes(),
        load=lambda: checked(source.load(), np.arange(len(source))),
        take=take,
        read=lambda rows: checked(read(rows), rows),
    )
    if check and source.num_bytes() <= CHECKED_BYTES:
        arrays = examples.load()
        return dataclasses.replace(examples, load=lambda: arrays, read=lambda rows: take(arrays, rows))
    return examples


def _decoded_once(source: Source) -> Callable[[Int[np.ndarray, " batch"]], Arrays]:
    """Returns `source.read` with a cache: decoding costs far more than copying, so each record is decoded once."""
    arrays, decoded = source.empty(), np.zeros(len(source), bool)

    def read(rows: Int[np.ndarray, " batch"]) -> Arrays:
        missing = np.unique(rows[~decoded[rows]])
        if len(missing):
            for name, values in source.read(missing).items():
                arrays[name][missing] = values
            decoded[missing] = True
        return {name: array[rows] for name, array in arrays.items()}

    return read


def token_windows(symbols: UInt[np.ndarray, " length"], size: int, *, lookahead: int) -> Examples:
    """Windows of `size` symbols, side by side; a row is the position of a window's first symbol.

    An example has `symbols` [size + lookahead] and `loss_weights` [size]: 0 where the stream has ended. Each epoch
    starts the first window at another offset, so that no boundary is always at the same place.
    """
    # The last window can begin up to one short of `size` symbols late, so the stream is padded by two windows.
    stream = {"symbols": np.concatenate([symbols, np.zeros(2 * size + lookahead, symbols.dtype)])}
    usable = len(symbols) - lookahead

    def take(arrays: Arrays, rows: Any) -> Arrays:
        positions = rows[:, None] + np.arange(size + lookahead, dtype=np.int32)[None]
        weights = (positions[:, :size] < usable).astype(np.float32)
        return {"symbols": arrays["symbols"][positions], "loss_weights": weights}

    return Examples(
        number=-(-usable // size),
        num_bytes=stream["symbols"].nbytes,
        load=lambda: stream,
        take=take,
        read=lambda rows: take(stream, rows),
        stride=size,
    )


def series_windows(rows: Arrays, size: int, stride: int = 1) -> Examples:
    """Every `stride`-th window of `size` rows of arrays [rows, ...], found by its first row.

    An example has the arrays' names.

    Raises:
        ValueError: there are fewer rows.
    """
    arrays = list(rows.values())
    number = len(arrays[0]) - size + 1
    if number < 1:
        raise ValueError(f"{len(arrays[0])} rows have no window of {size}")

    def take(arrays: Arrays, first: Any) -> Arrays:
        positions = first[:, None] + np.arange(size, dtype=np.int32)[None]
        return {name: array[positions] for name, array in arrays.items()}

    return Examples(
        number=-(-number // stride),
        stride=stride,
        num_bytes=sum(array.nbytes for array in arrays),
        load=lambda: rows,
        take=take,
        read=lambda first: take(rows, first),
    )


def generated_examples(number: int, *, first: int, endless: bool) -> Examples:
    """Examples that are only numbers, from `first` on; `Task.prepare` draws each one from its number.

    Endless ones never repeat in training; `number` then only counts the examples of an evaluation.
    """

    def take(arrays: Arrays, rows: Any) -> Arrays:
        del arrays
        return {"index": rows + np.int32(first)}

    return Examples(number=number, num_bytes=0, load=dict, take=take, read=functools.partial(take, {}), endless=endless)
