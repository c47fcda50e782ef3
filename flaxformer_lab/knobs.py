"""What each key of a config takes and means, read from the dataclasses, for docs/knobs.md and for `--help`."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from flaxformer_lab.parsing import Choices, Tagged


def rows(kind: type, prefix: str, inherited: type | None = None) -> Iterator[tuple[str, str, str, str]]:
    """(key, values, default, meaning) of every knob of a dataclass, those of the groups inside it included.

    Raises:
        ValueError: a knob without a meaning.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    known = (meanings(inherited) if inherited else {}) | meanings(kind)
    for knob in dataclasses.fields(kind):
        hint = hints[knob.name]
        if dataclasses.is_dataclass(hint):
            yield from rows(hint, f"{prefix}{knob.name}.")
        elif not is_tagged(hint) and not selects_alone(knob.name, hint):
            if knob.name not in known:
                raise ValueError(f"{kind.__name__}.{knob.name} has no line under `Attributes:`; write one")
            default = "" if knob.default is dataclasses.MISSING else f"`{plain(knob.default)}`"
            yield f"`{prefix}{knob.name}`", values(hint), default, known[knob.name]


def is_tagged(hint: Any) -> bool:
    """Whether a type is one of several dataclasses, selected by `name`."""
    return any(isinstance(each, Tagged) for each in typing.get_args(hint))


def selects_alone(name: str, hint: Any) -> bool:
    """Whether a knob is the `name` that selects its dataclass and has no other choice."""
    return name == "name" and len(typing.get_args(hint)) == 1


def values(hint: Any) -> str:
    """A type in words: choices, or a number with its rules."""
    if typing.get_origin(hint) is Annotated:
        kind, *rules = typing.get_args(hint)
        if isinstance(rules[0], Choices):
            return ", ".join(f"`{choice}`" for choice in rules[0].names())
        limits = [rule.text.removeprefix("must ").replace("be ", "", 1) for rule in rules]
        return ", ".join([values(kind), *(limit for limit in limits if limit != "below 2**31")])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(values(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"several, separated by commas: {values(typing.get_args(hint)[0])}"
    return {bool: "`true`, `false`", types.NoneType: "`none`", str: "text"}.get(hint, hint.__name__)


def plain(value: Any) -> str:
    """A default as a command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "(empty)"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def summary(kind: type) -> str:
    """A docstring up to its attributes, as one paragraph."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[0].split())


def meanings(kind: type) -> dict[str, str]:
    """The lines under `Attributes:` of a dataclass and of its base classes, by name."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        lines = inspect.cleandoc(each.__doc__ or "").partition("Attributes:")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     +\S.*)*)", lines, re.MULTILINE):
            found[name] = " ".join(text.split()).removesuffix(".")
    return found
