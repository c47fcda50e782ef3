import numpy as np
import pytest

from flaxformer_lab.data.order import evaluation_batches, positions, start_offset


def stream(seed, batch_size, num_examples, steps):
    pairs = [positions(seed, step, batch_size, num_examples) for step in range(steps)]
    return np.concatenate([epochs for epochs, _ in pairs]), np.concatenate([indices for _, indices in pairs])


@pytest.mark.parametrize(("batch_size", "num_examples"), [(4, 12), (5, 12), (12, 12), (31, 12), (1, 3), (7, 1)])
def test_each_epoch_has_each_example_once_and_nothing_is_dropped(batch_size, num_examples):
    epochs, indices = stream(3, batch_size, num_examples, steps=24)
    np.testing.assert_array_equal(epochs, np.arange(len(epochs)) // num_examples)
    for epoch in range(len(indices) // num_examples):
        np.testing.assert_array_equal(np.sort(indices[epochs == epoch]), np.arange(num_examples))


def test_the_batch_size_does_not_change_the_stream():
    np.testing.assert_array_equal(stream(1, 6, 10, 5)[1], stream(1, 15, 10, 2)[1])


def test_a_step_is_the_same_whatever_was_asked_before():
    later = positions(9, 1000, 8, 37)
    for step in (0, 999, 1001, 3):
        positions(9, step, 8, 37)
        positions(10, step, 8, 37)
    again = positions(9, 1000, 8, 37)
    np.testing.assert_array_equal(later, again)


def test_epochs_and_seeds_differ():
    seeds = (0, 1, 2, 2**32, 2**63, 2**64 - 1)
    orders = {tuple(positions(seed, epoch, 50, 50)[1]) for seed in seeds for epoch in range(5)}
    assert len(orders) == len(seeds) * 5


def test_a_seed_of_any_size_has_an_order():
    assert sorted(positions(2**200 + 17, 0, 9, 9)[1]) == list(range(9))


def test_orders_are_uniform():
    first = [positions(seed, 0, 1, 5)[1][0] for seed in range(500)]
    counts = np.bincount(first, minlength=5)
    assert ((counts - 100) ** 2 / 100).sum() < 18.5  # 99.9% of chi squared with 4 degrees of freedom


def test_the_order_never_changes():
    epochs, indices = positions(seed=7, step=2, batch_size=4, num_examples=10)
    assert epochs.tolist() == [0, 0, 1, 1]
    assert indices.tolist() == [8, 4, 1, 9]
    assert [start_offset(7, epoch, 1000) for epoch in range(4)] == [458, 0, 502, 893]


def test_positions_cannot_be_spoilt_by_their_receiver():
    before = positions(5, 0, 10, 10)[1].copy()
    positions(5, 0, 10, 10)[1][:] = 0
    np.testing.assert_array_equal(positions(5, 0, 10, 10)[1], before)


@pytest.mark.parametrize("wrong", [dict(step=-1), dict(num_examples=0), dict(batch_size=-2)])
def test_impossible_positions_are_refused(wrong):
    with pytest.raises(ValueError, match="no order for"):
        positions(**{"seed": 0, "step": 0, "batch_size": 2, "num_examples": 3} | wrong)


@pytest.mark.parametrize(("num_examples", "batch_size", "batches"), [(10, 4, 3), (8, 4, 2), (3, 8, 1), (1, 1, 1)])
def test_evaluation_visits_each_example_once(num_examples, batch_size, batches):
    indices, weights = evaluation_batches(num_examples, batch_size)
    assert indices.shape == weights.shape == (batches, batch_size) and weights.dtype == np.float32
    assert indices[weights == 1].tolist() == list(range(num_examples))
    assert weights.sum() == num_examples and set(np.unique(weights)) <= {0, 1}
    assert indices.min() >= 0 and indices.max() < num_examples


def test_start_offsets_differ_by_epoch_and_from_the_permutation():
    offsets = [start_offset(0, epoch, 128) for epoch in range(50)]
    assert min(offsets) >= 0 and max(offsets) < 128 and len(set(offsets)) > 30
    assert offsets != [positions(0, epoch, 1, 128)[1][0] for epoch in range(50)]
    assert [start_offset(0, epoch, 1) for epoch in range(5)] == [0] * 5
