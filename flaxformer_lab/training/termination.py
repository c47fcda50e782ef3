"""A request to end the process, which waits until the run can save."""

import signal
import threading
from types import FrameType
from typing import Any

from flaxformer_lab.training.hosts import all_reduce_any


class Termination:
    """As a context: `asked` turns true once the process receives SIGTERM, as batch systems send it before they kill."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def agreed(self) -> bool:
        """Whether any of the processes that train as one was asked; every one of them has to ask here."""
        self.asked = all_reduce_any(self.asked)
        return self.asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.asked = True
