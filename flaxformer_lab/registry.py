"""Parts by name: attention and FFN kinds, models, tasks, data sets, controls; the lab's own and those of a user's file.

A part declares its properties where it is registered; theory, the measures and the rules of the config ask for them. A
property that is not declared is unknown (None): nothing is concluded from it.
"""

import dataclasses
import hashlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import nearest

Build = TypeVar("Build", bound=Callable[..., Any])  # a class; of a control, a function
Property = Any  # a value, or a function of the config and the number of tokens (None while a config is parsed)

# An attention kind declares the properties of its `mix`, from heads to heads; the config decides the projections.
PROPERTIES: dict[str, dict[str, str]] = {
    "attention": {
        "odd": "mix(-q, -k, -v) = -mix(q, k, v)",
        "affine": "the output is an affine map of the input",
        "mixes_features": "one feature of a head can reach another",
        "sees_content": "the weights depend on the input",
        "causal": "with model.causal no token sees a later one",
        "windowed": "with attention.window no token sees past it",
        "reach": "how many tokens back a token can see; math.inf for all",
        "crosses": "it can attend to another sequence, `memory`",
        "has_token_weights": "each row of weights over tokens sums to 1, and is offered as the intermediate `weights`",
        "decodes": "prefill and decode equal the forward pass",
    },
    "ffn": {
        "odd": "f(-x) = -f(x)",
        "affine": "the output is an affine map of the input",
        "mixes_features": "one feature can reach another",
        "block_size": "features reach each other only inside blocks of so many, side by side",
        "rank": "the output lies in an affine space of so many dimensions",
        "reach": "0: each token alone",
    },
    "model": {
        "odd": "f(-x) = -f(x), a dense embedding and head included",
        "affine": "the output is an affine map of the token vectors",
        "mixes_features": "one feature can reach another",
        "block_size": "features reach each other only inside blocks of so many, side by side",
        "rank": "a token's output follows from so many sums of its features, or lies in so many dimensions",
        "causal": "no token sees a later one",
        "reach": "how many tokens back a token can see; math.inf for all",
        "attends": "one layer lets a token see any other, but for a mask or a window",
        "has_token_weights": "its layers offer attention weights over tokens",
        "decodes": "it has prefill and decode of its own, which equal the forward pass",
        "needs_grid": "its tokens must lie on a grid of rows and columns",
        "shards_tokens": "it works on tokens that are sharded over devices",
    },
    "task": {"has_grid": "its tokens lie on a grid of rows and columns"},
    "dataset": {},
    "control": {
        "fits": "the names of the tasks that it can learn",
        "rates": "the grid of rates with which its search begins",
        "drawn": "what it learns depends on the seed",
    },
}


@dataclass(frozen=True)
class Part:
    """A registered class or control. config: the frozen dataclass that models and tasks bring along."""

    build: Any
    config: type | None
    properties: Mapping[str, Property]


MODEL_KNOBS = {"width", "bias", "dtype", "precision"}  # what embeddings and heads read of any model

_PARTS: dict[str, dict[str, Part]] = {kind: {} for kind in PROPERTIES}
_IMPORTED: dict[str, str] = {}  # the text of each file of `import_parts`, by its path


def register(kind: str, name: str, *, config: type | None = None, **properties: Property) -> Callable[[Build], Build]:
    """Decorator of a class or a control: the config may name it from now on.

    kind: attention, ffn, model, task, dataset or control (a function). config: of a model or a task, a frozen
    dataclass whose `name` is a Literal that holds this name. properties: those of PROPERTIES[kind], each a value or a
    function of the config and the number of tokens; one that is left out is unknown.

    Raises:
        ConfigError: the name is taken, or the kind, a property or the config is unknown or invalid.
    """
    where = f"register({kind!r}, {name!r})"
    if kind not in PROPERTIES:
        raise ConfigError(f"{where}: no such kind of part; choose from {', '.join(PROPERTIES)}")
    for key in properties:
        if key not in PROPERTIES[kind]:
            known = PROPERTIES[kind]
            raise ConfigError(
                f"{where}: {key} is no property: {nearest(key, known)}choose from {', '.join(known) or 'none'}"
            )
    if (kind in ("model", "task")) != (config is not None) or (config is not None and not _names(config, name)):
        raise ConfigError(
            f"{where}: config={getattr(config, '__name__', config)}; models and tasks, and no others, bring a frozen "
            f'dataclass with name: Literal["{name}"] = "{name}"'
        )
    lacking = MODEL_KNOBS - {knob.name for knob in dataclasses.fields(config)} if kind == "model" else ()
    if lacking:
        raise ConfigError(f"{where}: {config.__name__} lacks {', '.join(sorted(lacking))}, which every model has")

    def decorate(build: Build) -> Build:
        taken = _PARTS[kind].get(name)
        if taken is not None:
            raise ConfigError(f"{where}: {taken.build.__module__} has one of this name; choose another name")
        if kind == "dataset" and build.name != name:
            raise ConfigError(f"{where}: TFDS calls {build.__name__} {build.name}; register it under that name")
        _PARTS[kind][name] = Part(build, config, properties)
        return build

    return decorate


def _names(config: type, name: str) -> bool:
    hint = typing.get_type_hints(config).get("name") if dataclasses.is_dataclass(config) else None
    return config.__dataclass_params__.frozen and name in typing.get_args(hint) if hint else False


def names(kind: str) -> tuple[str, ...]:
    """The registered names of a kind, in the order in which they were registered."""
    return tuple(_PARTS[kind])


def configs(kind: str) -> dict[str, type]:
    """The config dataclass of each registered model or task."""
    return {name: part.config for name, part in _PARTS[kind].items()}


def lookup(kind: str, name: str) -> Part:
    """The part of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _PARTS[kind]:
        raise ConfigError(f"{name} is no {kind}: {nearest(name, names(kind))}{format_choices(names(kind))}")
    return _PARTS[kind][name]


def format_choices(known: Iterable[str]) -> str:
    """The way out of an unknown name."""
    return f"pass --import=FILE where a file of your own has it, or choose from {', '.join(known)}"


def ask(kind: str, name: str, key: str, config: Any = None, tokens: int | None = None) -> Any:
    """What a part declares of itself, for a config and a number of tokens; None where that is unknown."""
    declared = lookup(kind, name).properties.get(key)
    return declared(config, tokens) if callable(declared) else declared


def declaring(kind: str, key: str) -> tuple[str, ...]:
    """The names of the parts that declare a property to hold always."""
    return tuple(name for name, part in _PARTS[kind].items() if part.properties.get(key) is True)


def all_of(*values: bool | None) -> bool | None:
    """Whether all hold; None where that is unknown."""
    return False if False in values else None if None in values else True


def any_of(*values: bool | None) -> bool | None:
    """Whether one holds; None where that is unknown."""
    return True if True in values else None if None in values else False


# ----------------------------------------------------------------------------------------------- a user's files


def import_parts(path: str) -> None:
    """Runs a Python file that registers parts; a file that has been imported is not run again.

    Raises:
        ConfigError: the file cannot be read, or fails.
    """
    file = Path(path).expanduser().absolute()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--import={path} cannot be read ({error}); name a Python file that registers parts"
        ) from error
    import_text(str(file), text)


def import_text(path: str, text: str) -> None:
    """Runs the text of a file of parts, as `import_parts` does; the file itself may be on another machine."""
    if path in _IMPORTED or any(getattr(module, "__file__", None) == path for module in list(sys.modules.values())):
        return
    module = types.ModuleType(f"imported_parts_{hashlib.sha256(path.encode()).hexdigest()[:8]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look up their annotations
    try:
        exec(compile(text, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ConfigError(f"--import={path} fails: {type(error).__name__}: {error}") from error
    _IMPORTED[path] = text


def imported_texts() -> dict[str, str]:
    """The text of each file that `import_parts` ran, by its path: what another process needs to know the same parts."""
    return dict(_IMPORTED)
