"""Shared by the commands: reads a recipe with its overrides into a config, and prints an error as one clear line."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from flaxformer_lab.ablation.variants import VARIANTS, apply_variants
from flaxformer_lab.compilation import use_compilation_cache
from flaxformer_lab.config import Config, as_dict, parse_config
from flaxformer_lab.errors import ConfigError, LabError
from flaxformer_lab.parsing import flatten, override
from flaxformer_lab.registry import import_parts

OVERRIDE = "--config."
IMPORT = flags.DEFINE_multi_string(
    "import", [], "Python file that registers parts of your own (docs/extending.md); may be repeated."
)


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a command: parses flags, passes the `--config.KEY=VALUE` arguments to `main`, maps errors to exit codes."""
    arguments, overrides = _split_overrides(sys.argv[1:])
    try:
        left = flags.FLAGS([sys.argv[0], *arguments])
        if left[1:]:
            raise ConfigError(f"{left[1]} is not understood; every argument is a flag: --name=value (see --help)")
        for path in IMPORT.value:
            import_parts(path)
        use_compilation_cache()
        main(overrides)
    except flags.Error as error:
        _fail(str(error).strip(), ConfigError.exit_code)
    except LabError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; the same command resumes from the last checkpoint", 130)


def load_config(recipe: str, overrides: Sequence[str], ablation: Sequence[str] = ()) -> Config:
    """The config of a recipe file, with named variants and single overrides applied.

    Raises:
        ConfigError: an invalid config, override or variant.
    """
    tree = overridden(read_recipe(recipe), overrides)
    keys = [_key_and_value(argument)[0] for argument in overrides]
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
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{argument} must be {OVERRIDE}KEY=VALUE, like {OVERRIDE}model.width=32")
    return key, value


def read_recipe(recipe: str) -> dict[str, Any]:
    """The mapping that a recipe's `get_config()` returns.

    Raises:
        ConfigError: there is no such file, or it returns no config.
    """
    path = Path(recipe)
    if not path.is_file():
        there = ", ".join(sorted(str(found) for found in Path("configs").glob("*.py"))) or "none in configs/"
        raise ConfigError(f"--config={recipe} is not a file; recipes here: {there}")
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={recipe} is not a Python file with a get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
        tree = config.to_dict() if hasattr(config, "to_dict") else config
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config={recipe} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"--config={recipe}: get_config() returns {type(tree).__name__} {tree!r}; "
            "it must return a mapping, such as ml_collections.ConfigDict"
        )
    return dict(tree)


def _fail(message: str, exit_code: int) -> None:
    # A message may quote a file; control characters are escaped.
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in message)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(exit_code)
