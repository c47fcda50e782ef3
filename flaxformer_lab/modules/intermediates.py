"""Intermediate values on request: a module offers them, for a caller that collects or replaces them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flaxformer_lab.errors import ConfigError

Hook = Callable[[Array], Any]  # gets an array; returns one of the same shape instead, or None to leave it
Hooks = Mapping[str, Sequence[Hook]]  # by the whole dotted name, in the order in which they run


def everything(name: str) -> bool:
    """Whether to collect a name: each."""
    del name
    return True


class Intermediates:
    """Collects named arrays while a model runs: `{"blocks.0.attention.weights": ..., ...}`.

    hooks: what reads or replaces them. collects: which names are kept in `values`.
    """

    def __init__(
        self,
        values: dict[str, Array] | None = None,
        prefix: str = "",
        hooks: Hooks | None = None,
        collects: Callable[[str], bool] = everything,
    ):
        self.values = {} if values is None else values
        self.hooks = hooks or {}
        self._prefix, self._collects = prefix, collects

    def within(self, name: str) -> "Intermediates":
        """Returns intermediates that put `name.` before every name and collect into the same dictionary."""
        return type(self)(self.values, f"{self._prefix}{name}.", self.hooks, self._collects)

    def fresh(self) -> "Intermediates":
        """Returns intermediates of the same prefix that collect into a dictionary of their own."""
        return type(self)({}, self._prefix, self.hooks, self._collects)

    def with_hooks(self, hooks: Hooks) -> "Intermediates":
        """Returns intermediates that also pass through these hooks."""
        return Intermediates(self.values, self._prefix, hooks, self._collects)

    def add(self, name: str, compute: Callable[[], Array]) -> None:
        """Offers a value that the model itself does not use; `compute` runs only where it is asked for.

        Raises:
            ConfigError: a hook returns another value for it.
        """
        name = self._prefix + name
        if self._collects(name) or name in self.hooks:
            value = compute()
            if self._hooked(name, value) is not value:
                raise ConfigError(f"{name} can be read by a hook, not replaced: the model does not use it in this form")

    def hook_point(self, name: str, x: Array) -> Array:
        """Offers a value that the model uses; returns it, or what a hook puts in its place."""
        return self._hooked(self._prefix + name, x)

    def has_hook(self, *names: str) -> bool:
        """Whether one of these is hooked, so that the model must compute with it."""
        return any(self._prefix + name in self.hooks for name in names)

    def _hooked(self, name: str, x: Array) -> Array:
        for hook in self.hooks.get(name, ()):
            new = hook(x)
            if new is not None and new is not x:
                if jnp.shape(new) != x.shape:
                    raise ConfigError(
                        f"the hook of {name} returns the shape {jnp.shape(new)}; it must be {x.shape}, or None to "
                        "leave the value as it is"
                    )
                x = jnp.asarray(new, x.dtype)
        if self._collects(name):
            self.values[name] = x
        return x


class _Disabled(Intermediates):
    """Collects nothing."""

    def within(self, name: str) -> Intermediates:
        return self

    def with_hooks(self, hooks: Hooks) -> Intermediates:
        return Intermediates(hooks=hooks, collects=lambda name: False)

    def add(self, name: str, compute: Callable[[], Array]) -> None:
        pass

    def hook_point(self, name: str, x: Array) -> Array:
        return x


DISABLED = _Disabled()
