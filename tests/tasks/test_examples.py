import dataclasses
import types
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.data.source import open_split
from flaxformer_lab.functional.metrics import Average
from flaxformer_lab.tasks.examples import generated_examples, stored_examples, token_windows
from flaxformer_lab.tasks.task import Task

STREAMS = [
    (10, 5, 0),
    (10, 5, 1),
    (11, 5, 1),
    (13, 4, 0),
    (97, 8, 1),
    (100, 32, 0),
    (33, 32, 1),
    (32, 32, 0),
    (9, 1, 1),
]


def text(length):
    """A stream in which no two symbols are the same."""
    return np.arange(1, length + 1, dtype=np.uint16)


@pytest.mark.parametrize(("length", "size", "lookahead"), STREAMS)
def test_windows_predict_every_symbol_exactly_once_in_evaluation(length, size, lookahead):
    examples = token_windows(text(length), size, lookahead=lookahead)
    batch = examples.read(examples.evaluation_indices(np.arange(examples.number)))
    assert batch["symbols"].shape == (examples.number, size + lookahead)
    assert batch["loss_weights"].shape == (examples.number, size) and batch["loss_weights"].dtype == np.float32
    predicted = batch["symbols"][:, lookahead:][batch["loss_weights"] == 1]
    np.testing.assert_array_equal(predicted, text(length)[lookahead:])
    assert batch["loss_weights"].sum() == length - lookahead


@pytest.mark.parametrize(("length", "size", "lookahead"), STREAMS)
def test_an_epoch_of_training_windows_has_every_symbol_after_its_offset_once(length, size, lookahead):
    examples = token_windows(text(length), size, lookahead=lookahead)
    for epoch in range(6):
        # One batch of the whole data set is one epoch.
        rows = examples.training_indices(5, epoch, examples.number)
        (offset,) = np.unique(rows % size)
        batch = examples.read(rows)
        predicted = batch["symbols"][:, lookahead:][batch["loss_weights"] == 1]
        np.testing.assert_array_equal(np.sort(predicted), text(length)[offset + lookahead :])


def test_training_windows_begin_elsewhere_in_each_epoch():
    examples = token_windows(text(1000), 64, lookahead=1)
    offsets = [int(examples.training_indices(0, epoch, examples.number)[0] % 64) for epoch in range(20)]
    assert len(set(offsets)) > 10 and min(offsets) >= 0


def test_a_batch_across_two_epochs_has_the_offset_of_each():
    examples = token_windows(text(1000), 64, lookahead=1)
    first, second = (examples.training_indices(3, epoch, examples.number) for epoch in range(2))
    # 16 windows an epoch, so the second batch of 12 takes 4 from the first epoch and 8 from the second.
    across = np.concatenate([examples.training_indices(3, step, 12) for step in range(2)])
    np.testing.assert_array_equal(across[:16], first)
    np.testing.assert_array_equal(across[16:], second[:8])
    assert first[0] % 64 != second[0] % 64


def test_training_rows_follow_from_seed_and_step_alone():
    examples = token_windows(text(1000), 64, lookahead=1)
    before = examples.training_indices(1, 7, 5)
    for seed, step in ((1, 6), (1, 8), (2, 7)):
        assert not np.array_equal(examples.training_indices(seed, step, 5), before)
    np.testing.assert_array_equal(token_windows(text(1000), 64, lookahead=1).training_indices(1, 7, 5), before)


@pytest.mark.parametrize(("length", "size", "lookahead"), STREAMS)
def test_windows_taken_on_the_device_are_those_read_on_the_host(length, size, lookahead):
    examples = token_windows(text(length), size, lookahead=lookahead)
    # Every row that training can ask for: the last window, moved by the largest offset, included.
    rows = np.arange(examples.number * size, dtype=np.int32)
    taken = jax.jit(examples.take)(jax.tree.map(jnp.asarray, examples.load()), rows)
    read = examples.read(rows)
    assert sorted(taken) == sorted(read) == ["loss_weights", "symbols"]
    padded = np.concatenate([text(length), np.zeros(3 * size + 3, np.uint16)])
    for position, symbols, weights in zip(rows, read["symbols"], read["loss_weights"], strict=True):
        np.testing.assert_array_equal(symbols, padded[position : position + size + lookahead])
        np.testing.assert_array_equal(weights, np.arange(position, position + size) < length - lookahead)
    for name in taken:
        np.testing.assert_array_equal(taken[name], read[name])
        assert taken[name].dtype == read[name].dtype


def test_windows_keep_the_type_of_the_symbols_and_say_what_they_hold():
    examples = token_windows(np.zeros(50, np.uint8), 7, lookahead=1)
    assert examples.load()["symbols"].dtype == np.uint8
    assert examples.num_bytes == sum(array.nbytes for array in examples.load().values())


@pytest.fixture(scope="module")
def digits_source():
    return open_split("lab_digits", "validation")


@pytest.fixture(scope="module")
def digits(digits_source):
    return stored_examples(digits_source)


def test_records_taken_on_the_device_are_those_read_from_disk(digits):
    rows = np.array([0, digits.number - 1, 3, 3, 50], np.int32)
    read = digits.read(rows)
    taken = jax.jit(digits.take)(jax.tree.map(jnp.asarray, digits.load()), rows)
    assert sorted(taken) == sorted(read) == ["image", "label"]
    for name in taken:
        np.testing.assert_array_equal(taken[name], read[name])
    assert len(np.unique(read["image"].reshape(5, -1), axis=0)) == 4


def test_records_are_decoded_once_where_memory_holds_them(digits_source, monkeypatch):
    asked = []

    class Counted(Sequence):
        def __len__(self):
            return len(digits_source)

        def __getitem__(self, index):
            return self.__getitems__([index])[0]

        def __getitems__(self, indices):
            asked.extend(indices)
            return digits_source.examples.__getitems__(indices)

    source = dataclasses.replace(digits_source, examples=Counted())
    rows = np.array([5, 2, 5, 9])
    kept = stored_examples(source)
    first, again = kept.read(rows), kept.read(rows[::-1])
    assert sorted(asked) == [2, 5, 9]
    monkeypatch.setattr("flaxformer_lab.tasks.examples.HOST_BYTES", source.num_bytes() - 1)
    decoded_anew = stored_examples(source)
    for name, values in decoded_anew.read(rows).items():
        np.testing.assert_array_equal(first[name], values)
        np.testing.assert_array_equal(again[name], values[::-1])
    decoded_anew.read(rows)
    assert len(asked) == 3 + 2 * len(rows)


def test_records_come_once_an_epoch(digits):
    rows = digits.training_indices(0, 0, digits.number)
    assert rows.dtype == np.int32 and not np.array_equal(rows, np.arange(digits.number))
    np.testing.assert_array_equal(np.sort(rows), np.arange(digits.number))
    np.testing.assert_array_equal(digits.evaluation_indices(np.arange(4)), np.arange(4))


def test_records_say_what_they_hold(digits):
    assert digits.num_bytes == sum(array.nbytes for array in digits.load().values())
    assert digits.number == len(digits.load()["label"])


def test_drawn_examples_are_their_numbers():
    examples = generated_examples(50, first=2**30, endless=False)
    rows = np.array([3, 0, 49], np.int32)
    assert (examples.number, examples.num_bytes, examples.load()) == (50, 0, {})
    read, taken = examples.read(rows), jax.jit(examples.take)({}, rows)
    assert sorted(read) == sorted(taken) == ["index"]
    for index in (read["index"], taken["index"]):
        assert index.dtype == np.int32
        np.testing.assert_array_equal(index, [2**30 + 3, 2**30, 2**30 + 49])


def test_drawn_examples_that_end_come_once_an_epoch_in_the_order_of_the_seed():
    examples = generated_examples(50, first=0, endless=False)
    epochs = [examples.training_indices(seed, step, 50) for seed, step in ((0, 0), (0, 1), (1, 0))]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
    assert len({epoch.tobytes() for epoch in epochs}) == 3


def test_endless_examples_count_on_and_never_repeat_below_2_to_the_30():
    examples, size = generated_examples(50, first=0, endless=True), 2**9 * 3
    whole = 2**30 // size
    for step in (0, 1, 7, whole // 2, whole - 1):
        rows = examples.training_indices(0, step, size)
        # Side by side, so that no two steps share a row.
        np.testing.assert_array_equal(rows, np.arange(step * size, (step + 1) * size))
        assert rows.dtype == np.int32 and rows[-1] < 2**30
    # Beyond, they begin again and never reach the numbers of evaluation.
    across = examples.training_indices(0, whole, size)
    assert across.min() == 0 and across.max() == 2**30 - 1 and len(np.unique(across)) == size
    assert examples.training_indices(0, 2**30, 64).max() < 2**30


def test_the_number_of_endless_examples_is_that_of_an_evaluation():
    examples = generated_examples(50, first=7, endless=True)
    assert examples.number == 50
    np.testing.assert_array_equal(examples.read(examples.evaluation_indices(np.arange(2)))["index"], [7, 8])


def test_a_metric_that_is_computed_of_what_is_gathered_has_no_figure_for_each_example():
    """As the average precision of stored images with objects: it has no entry among the metrics of a batch."""
    figures = {"loss": Average(jnp.float32(1), jnp.float32(2)), "detections": object()}
    task = types.SimpleNamespace(
        loss_and_metrics=lambda outputs, batch: figures, primary_metric=types.SimpleNamespace(name="ap", beside=())
    )
    assert Task.metrics_and_examples(task, None, {}) == figures
