"""A lock that keeps other processes out, on a file or on a folder itself, and that ends with its process."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process holds the lock while the context lasts; with `wait` it waits until it does.

    A file that is missing is made, and stays. A folder is locked as it is. On a file system without locks every process
    gets the lock.

    Raises:
        OSError: the path cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_held = True
        except BlockingIOError:
            is_held = False
        except OSError:
            is_held = True
        yield is_held
    finally:
        os.close(descriptor)
