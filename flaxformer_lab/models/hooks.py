"""Hooks on a network's intermediate values, and the ablations that are made of them.

A hook is a function of an array; it returns another of the same shape, or None. Hooks are given as {name: hook}, or as
a list of (name, hook), which run in this order. A name may have wildcards: `blocks.*.attention.z`.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.modules.intermediates import Hook
from flaxformer_lab.parsing import nearest

NamedHooks = Mapping[str, Hook] | Sequence[tuple[str, Hook]]
WAYS = ("zero", "mean")


def pairs(hooks: NamedHooks) -> tuple[tuple[str, Hook], ...]:
    """(name, hook) of each."""
    return tuple(hooks.items() if isinstance(hooks, Mapping) else hooks)


def resolve(hooks: NamedHooks, names: Sequence[str]) -> dict[str, list[Hook]]:
    """The hooks of each whole name, among `names`.

    Raises:
        ConfigError: a name or pattern that is none of them.
    """
    found: dict[str, list[Hook]] = {}
    for pattern, hook in pairs(hooks):
        matched = fnmatch.filter(names, pattern)
        if not matched:
            general = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names)
            raise ConfigError(
                f"{pattern} is no intermediate of this network: {nearest(pattern, names)}choose from "
                f"{', '.join(general)}"
            )
        for name in matched:
            found.setdefault(name, []).append(hook)
    return found


def ablate_head(layer: int | str, head: int | Sequence[int], by: str = "zero") -> list[tuple[str, Hook]]:
    """Hooks that replace what a head, or several, of a layer's attention gives to the output map.

    layer: its number, or "*" for all. by: zero, or mean: over the examples and tokens of the batch (padding too).

    Raises:
        ConfigError: another `by`; when the hook runs, a head that the layer lacks.
    """
    _check(by)
    heads = [head] if isinstance(head, int) else list(head)

    def hook(z: Array) -> Array:
        for number in heads:
            if not 0 <= number < z.shape[2]:
                raise ConfigError(f"layer {layer} has no head {number}: it has {z.shape[2]}, counted from 0")
        chosen = jnp.zeros(z.shape[2], bool).at[jnp.asarray(heads)].set(True)
        return jnp.where(chosen[None, None, :, None], _instead(z, by), z)

    return [(f"blocks.{layer}.attention.z", hook)]


def ablate_ffn(layer: int | str, by: str = "zero") -> list[tuple[str, Hook]]:
    """Hooks that replace what a layer's FFN adds to the residual stream; arguments as in `ablate_head`."""
    _check(by)
    return [(f"blocks.{layer}.ffn.output", lambda y: jnp.broadcast_to(_instead(y, by), y.shape))]


def _instead(x: Array, by: str) -> Array:
    """Zeros, or the mean over examples and tokens; it broadcasts over both."""
    if by == "zero":
        return jnp.zeros((1, 1, *x.shape[2:]), x.dtype)
    return jnp.mean(x.astype(jnp.float32), axis=(0, 1), keepdims=True).astype(x.dtype)


def _check(by: Any) -> None:
    if by not in WAYS:
        raise ConfigError(f"by={by!r} is no way to ablate: choose from {', '.join(WAYS)}")
