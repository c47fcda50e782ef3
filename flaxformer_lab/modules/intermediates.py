"""Intermediate values on request: a module offers them, and they are computed only for a caller that collects them."""

from collections.abc import Callable

from jaxtyping import Array


class Intermediates:
    """Collects named arrays while a model runs: `{"blocks.0.attention.weights": ..., ...}`."""

    def __init__(self, values: dict[str, Array] | None = None, prefix: str = ""):
        self.values = {} if values is None else values
        self._prefix = prefix

    def within(self, name: str) -> "Intermediates":
        """Returns intermediates that put `name.` before every name and collect into the same dictionary."""
        return type(self)(self.values, f"{self._prefix}{name}.")

    def fresh(self) -> "Intermediates":
        """Returns intermediates of the same prefix that collect into a dictionary of their own."""
        return type(self)({}, self._prefix)

    def add(self, name: str, compute: Callable[[], Array]) -> None:
        """Offers a value; `compute` runs only when the caller collects values."""
        self.values[self._prefix + name] = compute()


class _Disabled(Intermediates):
    """Collects nothing."""

    def within(self, name: str) -> Intermediates:
        return self

    def add(self, name: str, compute: Callable[[], Array]) -> None:
        pass


DISABLED = _Disabled()
