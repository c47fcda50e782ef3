"""The order of the data: which examples make up an update is a pure function of (seed, step).

A run that stops and starts again, on another machine or with other devices, sees the same batches.
"""

import functools

import numpy as np
from jaxtyping import Float32, Int64

# The streams of random numbers that are drawn for each (seed, epoch).
_PERMUTATION, _OFFSET = 0, 1


def positions(
    seed: int, step: int, batch_size: int, num_examples: int
) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
    """Returns the epochs and the indices of the examples of the update that takes the state from `step` to `step + 1`.

    The updates read, one after the other, from an endless row of epochs. Each epoch is a fresh permutation of all
    examples: none is dropped and none comes twice. A batch may begin in one epoch and end in another.
    """
    if min(step, batch_size, num_examples) < 0 or num_examples == 0:
        raise ValueError(f"no order for {step=}, {batch_size=}, {num_examples=}")
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64), num_examples)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        within = epochs == epoch
        indices[within] = _permutation(seed, epoch, num_examples)[places[within]]
    return epochs, indices


def evaluation_batches(
    num_examples: int, batch_size: int
) -> tuple[Int64[np.ndarray, "batches batch"], Float32[np.ndarray, "batches batch"]]:
    """Returns indices and weights that visit each example once, in order; what fills up the last batch weighs 0."""
    places = np.arange(-(-num_examples // batch_size) * batch_size, dtype=np.int64).reshape(-1, batch_size)
    return np.minimum(places, num_examples - 1), (places < num_examples).astype(np.float32)


def start_offset(seed: int, epoch: int, length: int) -> int:
    """Returns a number in [0, length), another for each epoch: by so much the windows of a text are shifted."""
    return int(_generator(seed, epoch, _OFFSET).integers(length))


@functools.lru_cache(maxsize=2)  # A batch reads two epochs at most, if the data set is not very small.
def _permutation(seed: int, epoch: int, num_examples: int) -> Int64[np.ndarray, " examples"]:
    order = _generator(seed, epoch, _PERMUTATION).permutation(num_examples)
    order.flags.writeable = False
    return order


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Returns numbers of their own for each seed (modulo 2**64), epoch and stream."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))
