"""Writes docs/knobs.md from the config dataclasses and the named variants: `python tools/knobs_page.py`.

A knob's meaning is its line under `Attributes:` in the docstring of its dataclass or of a base class. A baseline's knob
without such a line has the Transformer's meaning.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from flaxformer_lab import registry
from flaxformer_lab.ablation.variants import VARIANTS
from flaxformer_lab.config import Config
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.parsing import Choices, Tagged

PAGE = Path(__file__).resolve().parents[1] / "docs" / "knobs.md"
HEADER = ("knob", "values", "default", "meaning")
OPENING = """# Knobs

<!-- Written by tools/knobs_page.py from the config dataclasses and the variants; change them and run it again. -->

Every key of a config can be set on the command line: `--config.model.attention.kind=mean`. The parser is strict: an
unknown key, a value out of range or two keys that contradict each other end the command with exit code 2 and an error
that names the nearest valid key or the rule, before anything is written. The source is `flaxformer_lab/config.py`,
`flaxformer_lab/model_config.py` and `flaxformer_lab/task_config.py`.
"""
MODELS = """
## Other models

`--ablation=NAME` takes another model at the recipe's width and depth. `--config.model.name=NAME` works in a recipe that
sets only keys which that model has.
"""
TASKS = """
## Tasks

`task.name` selects the task, and with it the keys of `task`.
"""
ABLATIONS = """
## Named variants

`--ablation=NAME` applies a named variant, `--ablation=single_head,linear_ffn` applies two. Variants that set one key to
different values are refused.
"""


def page() -> str:
    """The whole page."""
    hints = typing.get_type_hints(Config, include_extras=True)
    parts = [OPENING, "\n## The run\n", table([row for row in rows(Config, "") if "." not in row[0]])]
    for name in ("optimizer", "training", "parallelism"):
        parts += [f"\n## `{name}`\n\n{summary(hints[name])}\n", table(rows(hints[name], f"{name}."))]
    parts += ["\n## `model`: the Transformer\n", table(rows(TransformerConfig, "model."))]
    others = [kind for kind in dict.fromkeys(registry.configs("model").values()) if kind is not TransformerConfig]
    parts += [MODELS, *(section(kind, "model", TransformerConfig) for kind in others)]
    parts.append(TASKS)
    for kind in dict.fromkeys(registry.configs("task").values()):
        shared = kind.__base__ if dataclasses.is_dataclass(kind.__base__) else None
        if shared and (title := f"\n### {summary(shared).removesuffix('.')}\n") not in parts:
            parts += [title, table(rows(shared, "task."))]
        parts.append(section(kind, "task", shared))
    variants = [(f"`{name}`", variant.purpose) for name, variant in VARIANTS.items()]
    return "".join([*parts, ABLATIONS, table(variants, ("variant", "what it is"))])


def section(kind: type, group: str, shared: type | None) -> str:
    """One of the dataclasses that `name` selects; rows that are the same for `shared` are only named."""
    names = " or ".join(f"`{name}`" for name in typing.get_args(typing.get_type_hints(kind)["name"]))
    above = list(rows(shared, f"{group}.")) if shared else []
    all_rows = list(rows(kind, f"{group}.", shared))
    same = ", ".join(row[0] for row in all_rows if row in above)
    text = f"\n### {group}.name = {names}\n\n{summary(kind)}\n"
    return text + (f"As above: {same}.\n" if same else "") + table([row for row in all_rows if row not in above])


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
            yield f"`{prefix}{knob.name}`", values(hint), f"`{plain(knob.default)}`", known[knob.name]


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


def table(body: Iterator[tuple[str, ...]] | list[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> str:
    """A Markdown table."""
    lines = list(body)
    lines = [header, ("---",) * len(header), *lines] if lines else []
    return "\n" * bool(lines) + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
