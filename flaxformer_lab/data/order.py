"""The order of the data: the examples of an update are a pure function of (seed, step).

A run that stops and resumes, on another machine or with other devices, sees the same batches.
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

    Updates read one after the other from an endless sequence of epochs. Each epoch is a new permutation of all
    examples: none is dropped and none comes twice. A batch may begin in one epoch and end in the next.
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
    """Returns indices and weights that visit each example once, in order; padding of the last batch has weight 0."""
    places = np.arange(-(-num_examples // batch_size) * batch_size, dtype=np.int64).reshape(-1, batch_size)
    return np.minimum(places, num_examples - 1), (places < num_examples).astype(np.float32)


def start_offset(seed: int, epoch: int, length: int) -> int:
    """Returns a number in [0, length), different for each epoch, by which the windows of a text are shifted."""
    return int(_generator(seed, epoch, _OFFSET).integers(length))


@functools.lru_cache(maxsize=2)  # A batch reads at most two epochs, unless the data set is very small.
def _permutation(seed: int, epoch: int, num_examples: int) -> Int64[np.ndarray, " examples"]:
    order = _generator(seed, epoch, _PERMUTATION).permutation(num_examples)
    order.flags.writeable = False
    return order


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Returns an independent generator for each seed (modulo 2**64), epoch and stream."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))
