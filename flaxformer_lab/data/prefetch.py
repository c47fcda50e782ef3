"""Makes the next batches while the current one is used."""

import collections
import itertools
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")


def prefetch(make_item: Callable[[int], T], start: int, stop: int, depth: int = 2) -> Iterator[T]:
    """Yields make_item(start), ..., make_item(stop - 1), made in this order by one thread, up to `depth` ahead.

    An error of `make_item` is raised here, when its item is due. The thread ends with the last item, with an error, and
    when the iterator is closed or garbage-collected; it does not start another item after that.

    >>> list(prefetch(lambda step: step**2, 3, 6))
    [9, 16, 25]
    """
    if depth < 1:
        raise ValueError(f"{depth=} leaves nothing to make ahead; it must be at least 1")
    steps = iter(range(start, stop))
    with futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        ahead = collections.deque(thread.submit(make_item, step) for step in itertools.islice(steps, depth))
        try:
            while ahead:
                item = ahead.popleft().result()
                ahead.extend(thread.submit(make_item, step) for step in itertools.islice(steps, 1))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
