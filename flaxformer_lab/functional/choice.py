"""Which of several ways to compute one formula was taken, and why."""

from typing import NamedTuple


class Choice(NamedTuple):
    """A way by name, and the reason in a sentence."""

    name: str
    reason: str


def asked_for(implementation: str, known: tuple[str, ...]) -> Choice:
    """The choice of a caller who names the way.

    Raises:
        ValueError: a name that is not known.
    """
    if implementation not in known:
        raise ValueError(f"implementation={implementation} is not one of {', '.join(known)}")
    return Choice(implementation, "asked for by name")
