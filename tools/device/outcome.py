"""The outcome of a check: measured values, or an exception that says why there are none."""

from collections.abc import Mapping
from typing import Any

Measured = dict[str, Any]  # by name: numbers and words, as plain JSON


class Skip(Exception):
    """The check does not apply here; the message says why."""


class Deviation(AssertionError):
    """A value differs from what it should be; `measured` has it."""

    def __init__(self, message: str, measured: Mapping[str, Any]):
        super().__init__(message)
        self.measured = dict(measured)


def required(holds: bool, message: str, measured: Measured) -> Measured:
    """Returns `measured` if the condition holds.

    Raises:
        Deviation: it does not hold.
    """
    if not holds:
        raise Deviation(message, measured)
    return measured
