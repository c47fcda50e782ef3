import gc
import threading

import pytest

from flaxformer_lab.data.prefetch import prefetch


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not workers()


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
def test_items_come_in_order(depth):
    assert list(prefetch(lambda step: step * 10, 3, 9, depth)) == [30, 40, 50, 60, 70, 80]


def test_nothing_to_make():
    assert list(prefetch(lambda step: step, 4, 4)) == []


def test_items_are_made_ahead_by_another_thread():
    made = {step: threading.Event() for step in range(6)}
    makers = set()

    def make(step):
        makers.add(threading.current_thread())
        made[step].set()
        return step

    items = prefetch(make, 0, 6, depth=2)
    assert next(items) == 0
    # While this thread holds item 0 and asks for nothing, items 1 and 2 are made.
    assert made[1].wait(timeout=30) and made[2].wait(timeout=30)
    assert list(items) == [1, 2, 3, 4, 5]
    assert len(makers) == 1 and threading.current_thread() not in makers


def test_no_more_than_depth_items_are_ahead():
    taken, ahead = -1, []

    def make(step):
        ahead.append(step - taken)
        return step

    for item in prefetch(make, 0, 50, depth=3):
        taken = item
    assert max(ahead) <= 4  # The three ahead of the one that is being handed over.


def test_an_error_is_raised_in_its_turn():
    def make(step):
        if step == 2:
            raise KeyError("step 2")
        return step

    items = prefetch(make, 0, 10)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(KeyError, match="step 2"):
        next(items)
    assert not workers()


def test_closing_ends_the_thread_and_makes_no_more():
    made = []
    items = prefetch(lambda step: made.append(step), 0, 1000, depth=4)
    next(items)
    items.close()
    assert not workers() and len(made) <= 5


def test_an_error_of_the_consumer_ends_the_thread():
    with pytest.raises(ZeroDivisionError):
        for item in prefetch(lambda step: step, 0, 1000):
            item / 0
    gc.collect()
    assert not workers()


def test_a_depth_of_zero_is_refused():
    with pytest.raises(ValueError, match="depth=0"):
        next(prefetch(lambda step: step, 0, 3, depth=0))
