"""A request to end the process, which waits until the run can save."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

from flaxformer_lab.training.hosts import all_reduce_any

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # of batch systems, a lost terminal, and Ctrl-C


class Termination:
    """As a context: `asked` turns true once the process receives one of SIGNALS; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self.signal = signal.SIGTERM
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any of the processes that train as one was asked; every one of them has to ask here."""
        agreed = all_reduce_any(self.asked)
        self.asked |= agreed  # a signal that comes while the others are asked is not forgotten
        return agreed

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.asked, self.signal = True, signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            print("saving after the updates in progress; Ctrl-C again leaves at once", file=sys.stderr)
