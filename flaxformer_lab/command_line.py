"""Shared by the commands: reads a recipe with its overrides into a config, and prints an error as one clear line."""

import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from flaxformer_lab.ablation.variants import VARIANTS, apply_variants
from flaxformer_lab.compilation import use_compilation_cache
from flaxformer_lab.config import Config, as_dict, parse_config
from flaxformer_lab.errors import ConfigError, LabError
from flaxformer_lab.help import full_help, short_help, version
from flaxformer_lab.parsing import flatten, known_keys, override, suggest
from flaxformer_lab.registry import import_parts
from flaxformer_lab.tasks.pretrained import fine_tuning

OVERRIDE = "--config."
IMPORT = flags.DEFINE_multi_string(
    "import", [], "Python file that registers parts of your own (docs/extending.md); may be repeated."
)


PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the whole config as JSON, and end.")


def run(
    main: Callable[[list[str]], None], config: type | None = None, rest: str | None = None, goes_on: str | None = None
) -> None:
    """Runs a command: parses flags, passes the `--config.KEY=VALUE` arguments to `main`, maps errors to exit codes.

    config: the dataclass whose keys the command takes; None where it takes none. rest: the flag, one that may be
    repeated, that takes arguments which are no flags; None where there must be none. goes_on: what to say after Ctrl-C
    of a command that continues its work when it is given again.
    """
    arguments, overrides = _split_overrides(sys.argv[1:])
    try:
        with contextlib.suppress(AttributeError):  # a stand-in, in a test
            sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that is not UTF-8
        if not sys.argv[1:]:
            print(short_help(main, config), file=sys.stderr)
            sys.exit(ConfigError.exit_code)
        asked = {argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-")}
        if asked & {"version"}:
            print(version())
            return
        if asked & {"help", "h", "helpfull", "helpshort"}:
            _import_what_is_named(arguments)
            print(full_help(main, config))
            return
        _refuse_repeated(arguments)
        left = flags.FLAGS([sys.argv[0], *arguments])
        if rest is not None:
            flags.FLAGS[rest].value = [*flags.FLAGS[rest].value, *left[1:]]
        elif left[1:]:
            raise ConfigError(f"{left[1]} is not understood; every argument is a flag: --name=value (see --help)")
        if PRINT_CONFIG.value and config is None:
            raise ConfigError("--print_config: this command takes no config; WORKDIR/config.json has that of the run")
        for path in IMPORT.value:
            import_parts(path)
        use_compilation_cache()
        main(overrides)
        sys.stdout.flush()
    except flags.UnrecognizedFlagError as error:
        hint = suggest(error.flagname.removeprefix("config."), known_keys(config)) if config else ""
        hint = re.sub(r"(mean|or) (?=\w)", rf"\1 {OVERRIDE}", hint)
        _fail(f"{str(error).strip()}{f'; {hint.strip()}' if hint else ''}", ConfigError.exit_code)
    except flags.Error as error:
        _fail(str(error).strip(), ConfigError.exit_code)
    except LabError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("; ".join(filter(None, ("interrupted", goes_on))), 130)
    except BrokenPipeError:  # who reads the output has seen enough, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it at its end
        sys.exit(0)


def command_alone(module: str) -> None:
    """Raises ImportError where a command is imported: it would hide the package's function of the same name."""
    package, _, name = module.rpartition(".")
    if package:
        raise ImportError(f"{module} is a command: python -m {module}; in Python: from {package} import {name}")


def split_names(values: Iterable[str]) -> list[str]:
    """The names of a flag that takes several, separated by commas, and that may be repeated."""
    return list(dict.fromkeys(name.strip() for value in values if value for name in value.split(",")))


def print_config(config: Any) -> None:
    """Prints a config as JSON."""
    print(json.dumps(as_dict(config), indent=2))


def _import_what_is_named(arguments: Sequence[str]) -> None:
    """Runs the files of `--import`, whose parts the help shows too."""
    for flag, value in _flags_in(arguments):
        if flag.name == IMPORT.name:
            import_parts(value)


def _refuse_repeated(arguments: Sequence[str]) -> None:
    """Raises ConfigError where a flag that takes one value is given two; absl would take the last one."""
    seen: dict[str, str] = {}
    for flag, value in _flags_in(arguments):
        if not isinstance(flag, flags.MultiFlag) and seen.setdefault(flag.name, value) != value:
            raise ConfigError(f"--{flag.name} is given twice, as {seen[flag.name]} and as {value}; give it once")


def _flags_in(arguments: Sequence[str]) -> Iterator[tuple[flags.Flag, str]]:
    """Each flag that is known, with its value, in both ways of writing: `--name=value` and `--name value`."""
    for argument, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in flags.FLAGS:
            flag = flags.FLAGS[name]
            yield flag, value if equals or flag.boolean else after


def load_config(recipe: str | Mapping[str, Any], overrides: Sequence[str], ablation: Sequence[str] = ()) -> Config:
    """The config of a recipe, a file or the mapping in it, with named variants and single overrides applied.

    A recipe of a pretrained model without a `model` takes that of its folder (`tasks.pretrained.fine_tuning`).

    Raises:
        ConfigError: an invalid config, override or variant.
    """
    tree = recipe if isinstance(recipe, Mapping) else read_recipe(recipe, changes_of(overrides))
    tree, fills_in = overridden(tree, overrides), "model" not in tree
    if "tasks" in tree and not {"task", "model"} & tree.keys():
        raise ConfigError(
            f"--config={recipe} is an ablation, not one run: python -m flaxformer_lab.ablate --config={recipe} "
            "--workdir=DIR runs it"
        )
    keys = [_key_and_value(argument)[0] for argument in overrides]
    if fills_in and isinstance(tree.get("task"), Mapping) and tree["task"].get("name") == "pretrained":
        tree = fine_tuning(tree)
    try:
        asked = parse_config(tree)
    except ConfigError as error:
        # The recipe's other keys belong to its own model; the variant of that name drops them.
        name = tree["model"]["name"] if "model.name" in keys else None
        if name in VARIANTS and str(error).startswith("unknown key model."):
            raise ConfigError(f"{error}; --ablation={name} takes that model at this one's width and depth") from error
        raise
    config = apply_variants(asked, ablation)
    _refuse_contradictions(keys, asked, config, ablation)
    return config


def overridden(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `tree` with each `--config.KEY=VALUE` applied."""
    for argument in overrides:
        tree = override(tree, *_key_and_value(argument))
    return dict(tree)


def changes_of(overrides: Sequence[str]) -> dict[str, str]:
    """The `--config.KEY=VALUE` arguments of a command, by key; the last of several counts."""
    return dict(map(_key_and_value, overrides))


def parse_step(text: str | None) -> int | str | None:
    """The step that a flag names: a number, "best", or None for the last one."""
    if text is None or text == "best":
        return text
    if not text.isdecimal():
        raise ConfigError(f"--step={text} must be a whole number or best")
    return int(text)


def _refuse_contradictions(keys: Sequence[str], asked: Config, config: Config, ablation: Sequence[str]) -> None:
    """Raises ConfigError where a variant sets an explicitly overridden key to another value."""
    wanted, given = flatten(as_dict(asked)), flatten(as_dict(config))
    for key in keys:
        if key not in given or wanted[key] != given[key]:
            raise ConfigError(
                f"{OVERRIDE}{key}={wanted[key]} contradicts --ablation={','.join(ablation)}, which "
                f"{f'sets it to {given[key]}' if key in given else 'takes another model'}; drop one of the two"
            )


def _split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.key=value` (or `--config.key value`) from the other arguments."""
    others, overrides = [], []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith(OVERRIDE):
            others.append(argument)
            continue
        if "=" not in argument and remaining and not remaining[0].startswith("--"):
            argument += "=" + remaining.pop(0)
        overrides.append(argument)
    return others, overrides


def _key_and_value(argument: str) -> tuple[str, str]:
    key, equals, value = argument.removeprefix(OVERRIDE).partition("=")
    key = key.removeprefix("config.")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{argument} must be {OVERRIDE}KEY=VALUE, like {OVERRIDE}model.width=32")
    return key, value


def read_recipe(recipe: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The mapping that a recipe's `get_config()` returns; of `FILE.py:TEXT`, its `get_config(TEXT)`.

    A Literal at its first argument lists what TEXT may be.

    overrides: values by dotted key, which are set before a ConfigDict's references are followed, and only for them.

    Raises:
        ConfigError: there is no such file, or it returns no config.
    """
    file, colon, argument = recipe.rpartition(":") if ".py:" in recipe else (recipe, "", "")
    path = Path(file)
    if not path.is_file():
        there = ", ".join(sorted(str(found) for found in Path("configs").glob("*.py"))) or "none in configs/"
        raise ConfigError(f"--config={recipe} is not a file; recipes here: {there}")
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={recipe} is not a Python file with a get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        with _as_main_folder(path, module):
            spec.loader.exec_module(module)
            if colon:
                _check_form(module.get_config, argument)
            config = module.get_config(argument) if colon else module.get_config()
            tree = _followed(config, overrides) if isinstance(config, ConfigDict) else config
            tree = dataclasses.asdict(tree) if dataclasses.is_dataclass(tree) else tree
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config={recipe} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"--config={recipe}: get_config() returns {type(tree).__name__} {tree!r}; "
            "it must return a mapping, such as ml_collections.ConfigDict"
        )
    return dict(tree)


def _check_form(get_config: Callable[..., Any], form: str) -> None:
    """Raises ValueError where the recipe lists its forms as a Literal, at its first argument, and this is none."""
    hint = next((each.annotation for each in inspect.signature(get_config).parameters.values()), None)
    forms = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal and form not in forms:
        named = ", ".join(filter(None, forms))
        raise ValueError(f"no such form: {form!r}; choose {named}{', or leave it out' if '' in forms else ''}")


@contextlib.contextmanager
def _as_main_folder(path: Path, module: Any) -> Iterator[None]:
    """A file's module and those beside it can be imported, as those of a script; afterwards they are forgotten."""
    before, folder = set(sys.modules), str(path.absolute().parent)
    sys.modules[module.__name__] = module  # where dataclasses look up annotations that are texts
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(folder + os.sep):
                del sys.modules[name]


def _followed(config: ConfigDict, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A ConfigDict as a mapping: what refers to a key that is overridden follows it."""
    for key, value in overrides.items():
        *groups, name = key.split(".")
        group: Any = config
        for each in groups:
            group = group.get(each) if isinstance(group, ConfigDict) else None
        if isinstance(group, ConfigDict) and name in group and not isinstance(group[name], ConfigDict):
            with group.unlocked():
                group.get_ref(name).set(_typed(value), type_safe=False)
    return config.to_dict()


def _typed(text: Any) -> Any:
    """A value, of a command line too, as Python's, so that a recipe can compute with it."""
    words = {"true": True, "false": False, "none": None}
    if not isinstance(text, str):
        return text
    with contextlib.suppress(ValueError, SyntaxError):
        return words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    return text


def _fail(message: str, exit_code: int) -> None:
    # A message may quote a file; control characters are escaped.
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in message)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(exit_code)
