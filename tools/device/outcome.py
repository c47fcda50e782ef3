"""What a check gives: figures, or an exception that says why it has none."""

from collections.abc import Mapping
from typing import Any

Figures = dict[str, Any]  # by name: numbers and words, as plain JSON


class Skip(Exception):
    """The check does not apply here; the message says why."""


class Deviation(AssertionError):
    """Something is not what it should be; `figures` says what it is."""

    def __init__(self, message: str, figures: Mapping[str, Any]):
        super().__init__(message)
        self.figures = dict(figures)


def required(holds: bool, message: str, figures: Figures) -> Figures:
    """The figures, where the condition holds.

    Raises:
        Deviation: it does not.
    """
    if not holds:
        raise Deviation(message, figures)
    return figures
