"""Which of several implementations of one formula was chosen, and why."""

from typing import NamedTuple


class Choice(NamedTuple):
    """An implementation by name, and the reason in a sentence."""

    name: str
    reason: str


def requested_choice(implementation: str, known: tuple[str, ...]) -> Choice:
    """The choice where the caller names the implementation.

    Raises:
        ValueError: a name that is not known.
    """
    if implementation not in known:
        raise ValueError(f"implementation={implementation} is not one of {', '.join(known)}")
    return Choice(implementation, "requested by name")
