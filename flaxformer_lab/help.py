"""What `--help` prints: purpose, flags, recipes, variants, and every config key with type, default and meaning."""

import ast
import dataclasses
import inspect
import platform
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from absl import flags

import flaxformer_lab
from flaxformer_lab.ablation.variants import VARIANTS
from flaxformer_lab.knobs import rows, summary
from flaxformer_lab.parsing import Tagged

Main = Callable[[list[str]], None]


def version() -> str:
    """The lab's version, and those of what it rests on."""
    parts = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax", "orbax-checkpoint"))
    return f"flaxformer_lab {flaxformer_lab.__version__} ({parts}, Python {platform.python_version()})"


def short_help(main: Main, config: type | None) -> str:
    """A command's purpose, its flags, and where to find more."""
    more = ["", f"{_command(main)} --help shows recipes, variants and every key of the config"] if config else []
    return "\n".join([_purpose(main), "", *_flags(main, config), *more])


def full_help(main: Main, config: type | None) -> str:
    """Everything that a command takes."""
    lines = [_purpose(main), "", *_flags(main, config)]
    if config is None:
        return "\n".join(lines)
    of_ablations = "tasks" in {field.name for field in dataclasses.fields(config)}
    found = sorted(path for path in Path("configs").rglob("*.py") if ("ablations" in path.parts) == of_ablations)
    if found:
        lines += ["", "recipes (--config=FILE):", *(f"  {path}  {_first_line(path)}" for path in found)]
    given_by = (
        "--config.variants.NAME=NAME,NAME" if of_ablations else "--ablation=NAME,NAME; in an ablation: variants.NAME"
    )
    lines += ["", f"variants ({given_by}):"]
    lines += [f"  {name}: {variant.purpose}" for name, variant in VARIANTS.items()]
    lines += ["", "config keys (--config.KEY=VALUE; of one key given twice the last value counts):"]
    lines += _keys(config)
    return "\n".join(lines)


def _purpose(main: Main) -> str:
    return inspect.cleandoc(inspect.unwrap(main).__globals__["__doc__"] or "")


def _command(main: Main) -> str:
    spec = inspect.unwrap(main).__globals__.get("__spec__")
    return f"python -m {spec.name}" if spec and "." in spec.name else f"python {Path(sys.argv[0]).name}"


def _flags(main: Main, config: type | None) -> Iterator[str]:
    """Each flag of the command itself, with its meaning and default."""
    yield "flags:"
    by_module = flags.FLAGS.flags_by_module_dict()
    own = {sys.argv[0], main.__module__, "flaxformer_lab.command_line"}
    for flag in sorted({f.name: f for name in own for f in by_module.get(name, [])}.values(), key=lambda f: f.name):
        if flag.name == "print_config" and config is None:
            continue
        default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default_unparsed
        default = "" if flag.default in (None, [], False) else f" Default: {default}."
        meaning = (flag.help or "").partition(";\n    repeat this option")[0]  # which absl adds
        yield from _wrapped(f"--{flag.name}", f"{meaning}{default}")
    yield from _wrapped("--version", "Print the versions, and end.")


def _keys(config: type) -> Iterator[str]:
    """Every key, by group; of several dataclasses that a `name` selects, all of them."""
    hints = typing.get_type_hints(config, include_extras=True)
    yield from _rows(row for row in rows(config, "") if "." not in row[0])
    for group, hint in hints.items():
        tagged = next((each for each in typing.get_args(hint) if isinstance(each, Tagged)), None)
        if tagged:
            kinds = tagged.kinds()
            default = kinds[tagged.default]
            seen = set(rows(default, f"{group}.")) if group == "model" else set()
            for kind in dict.fromkeys([default, *kinds.values()]):
                names = " or ".join(name for name, each in kinds.items() if each is kind)
                body = rows(kind, f"{group}.", default if group == "model" else None)
                same = seen if kind is not default else set()
                yield f"\n {group}.name={names}: {summary(kind)}"
                yield from _rows(row for row in body if row not in same)
        elif dataclasses.is_dataclass(hint):
            yield f"\n {group}: {summary(hint)}"
            yield from _rows(rows(hint, f"{group}."))


def _rows(knobs: Iterable[tuple[str, str, str, str]]) -> Iterator[str]:
    for key, values, default, meaning in knobs:
        shown = f"{key}={default}".removesuffix("=").replace("`", "")
        yield from _wrapped(shown, f"{values}. {meaning}".replace("`", ""))


def _wrapped(name: str, text: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    return [f"  {name}", *textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _first_line(path: Path) -> str:
    """The first line of a recipe's docstring; the recipe is not run."""
    try:
        return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    except (OSError, ValueError, SyntaxError):
        return ""
