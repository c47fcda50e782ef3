"""Strict parsing of nested plain values into frozen dataclasses. Independent of what a run is.

A dataclass's annotations give types, ranges and choices. Rules about several keys are in the `rules()` of the smallest
dataclass that has them all. Its `RENAMED`, {old: (new, {old value: new value})}, keeps configs of earlier versions
readable: booleans that became choices.
"""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flaxformer_lab.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """A condition on one value, and its text for a user."""

    text: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Choices:
    """Annotates a text that must be one of `names()`, which may grow; `way_out(names)` ends the error message."""

    names: Callable[[], Sequence[str]]
    way_out: Callable[[Iterable[str]], str]


@dataclass(frozen=True)
class Tagged:
    """Annotates one of several dataclasses, `kinds()`, chosen by the mapping's `name`; `default` where it has none."""

    kinds: Callable[[], Mapping[str, type]]
    default: str
    way_out: Callable[[Iterable[str]], str]


SMALL = Rule("must be below 2**31", lambda value: value < 2**31)  # 32-bit array indices
AtLeastOne = Annotated[int, Rule("must be at least 1", lambda value: value >= 1), SMALL]
AtLeastTwo = Annotated[int, Rule("must be at least 2", lambda value: value >= 2), SMALL]
NonNegative = Annotated[int, Rule("must not be negative", lambda value: value >= 0), SMALL]
Depth = Annotated[NonNegative, Rule("must be at most 1000: each block is compiled", lambda value: value <= 1000)]
Positive = Annotated[float, Rule("must be above 0", lambda value: value > 0)]
Rate = Annotated[float, Rule("must be at least 0 and below 1", lambda value: 0 <= value < 1)]
Decay = Annotated[float, Rule("must not be negative", lambda value: value >= 0)]
Fraction = Annotated[float, Rule("must be above 0 and below 1", lambda value: 0 < value < 1)]
Seed = Annotated[int, Rule("must be at least 0 and below 2**32", lambda value: 0 <= value < 2**32)]
Name = Annotated[str, Rule("must not be empty", lambda value: bool(value.strip()))]
NOT_EMPTY = Rule("must have at least one entry", bool)
DISTINCT = Rule("must name at least one value, and none of them twice", lambda value: 0 < len(value) == len(set(value)))


# The field's other names for a key.
ALIASES = {
    alias: name
    for name, aliases in {
        "batch_size": "bs batch batchsize train_batch_size",
        "checkpoint_every": "save_every save_steps checkpoint_interval",
        "clip_norm": "clip grad_clip gradient_clip grad_norm max_grad_norm clip_grad_norm",
        "depth": "layers num_layers n_layer n_layers num_hidden_layers num_blocks blocks",
        "dropout": "dropout_rate drop drop_rate dropout_prob",
        "epsilon": "eps layer_norm_eps layer_norm_epsilon",
        "evaluate_every": "eval_every eval_steps eval_interval",
        "expansion": "mlp_ratio d_ff ff_mult hidden_mult ffn_ratio intermediate_size",
        "head_dim": "d_head dim_head head_size",
        "learning_rate": "lr base_lr peak_lr max_lr",
        "num_heads": "heads n_heads n_head num_attention_heads nhead",
        "num_kv_heads": "kv_heads n_kv_heads num_key_value_heads",
        "sequence_length": "seq_len seq_length context_length context block_size max_length max_len",
        "steps": "num_steps max_steps train_steps num_train_steps iterations epochs",
        "warmup_steps": "warmup num_warmup_steps warmup_iters",
        "weight_decay": "wd decay",
        "width": "d_model dim embed_dim emb_dim n_embd hidden_size hidden_dim features",
    }.items()
    for alias in aliases.split()
}


def parse(kind: Any, value: Any, path: str) -> Any:
    """Returns `value` as the annotated type `kind`; `path` names it in errors.

    A dataclass is read from a mapping, strictly; the mapping's `name` selects one of several (`Tagged`). What the
    mapping leaves out takes its default; then the dataclass's `rules()` are checked. NumPy's numbers, arrays and ranges
    are read as Python's.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or keys that contradict one another.
    """
    if path:
        return _parse(kind, value, path)
    try:
        return _parse(kind, value, path)
    except _UnknownKeyError as error:
        raise ConfigError(error.text(known_keys(kind))) from None


class _UnknownKeyError(ConfigError):
    """A key that its group lacks; the whole config may have it elsewhere."""

    def __init__(self, key: str, value: Any, group: Mapping[str, Any], has: str):
        self.key, self.group, self.has = key, group, has
        self.shown = "" if isinstance(value, Mapping) else f" (value {value!r})"
        super().__init__(self.text({}))

    def text(self, known: Mapping[str, str]) -> str:
        """The message. known: every key of the config, as `suggest` takes them."""
        last = self.key.rpartition(".")[2]
        known = {key: where for key, where in known.items() if key != self.key or where}
        alias = ALIASES.get(last)
        near = f"did you mean {alias}? " if alias in self.group else suggest(self.key, known)
        return f"unknown key {self.key}{self.shown}: {near or nearest(last, self.group)}{self.has}"


def suggest(key: str, known: Mapping[str, str]) -> str:
    """Returns "did you mean ...? " for the keys that end as `key` does, by its own name or the field's other one.

    known: each key of the config, with the model or task that has it where others have not.
    """
    last = key.rpartition(".")[2]
    names = {last, ALIASES.get(last, last), key}
    found = [each for each in known if each in names or any(each.endswith(f".{name}") for name in names)]
    found = [each for each in found if each == key] or found
    # Those of the same group first.
    found.sort(key=lambda each: (each.partition(".")[0] != key.partition(".")[0], len(each)))
    shown = [f"{each}{f' ({known[each]})' if known[each] else ''}" for each in found[:3]]
    return f"did you mean {' or '.join(shown)}? " if shown else ""


def known_keys(kind: type, prefix: str = "", condition: str = "") -> dict[str, str]:
    """Every dotted key below a dataclass, with the `name` that has it, where a name selects one of several."""
    keys: dict[str, str] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        tagged = next((each for each in typing.get_args(hint) if isinstance(each, Tagged)), None)
        if tagged:
            kinds = tagged.kinds()
            for tag, inner in [(tagged.default, kinds[tagged.default]), *kinds.items()]:
                where = "" if tag == tagged.default else f"of {prefix}{name}.name={tag}"
                keys |= {k: v for k, v in known_keys(inner, f"{prefix}{name}.", where).items() if k not in keys}
        elif dataclasses.is_dataclass(hint):
            keys |= known_keys(hint, f"{prefix}{name}.", condition)
        else:
            keys[prefix + name] = condition
    return keys


def _parse(kind: Any, value: Any, path: str) -> Any:
    value = as_plain(value)
    rules: tuple[Rule, ...] = ()
    if typing.get_origin(kind) is Annotated:
        kind, *rules = typing.get_args(kind)
        if isinstance(rules[0], Choices):
            return _parse_choice(rules[0].names(), value, path, rules[0].way_out)
        if isinstance(rules[0], Tagged):
            return _parse_dataclass(_tagged(rules[0], value, path), value, path, tagged=True)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        options = tuple(option for option in typing.get_args(kind) if option is not types.NoneType)
        is_none = value is None or (isinstance(value, str) and value.lower() == "none")
        if is_none and types.NoneType in typing.get_args(kind):
            return None
        tables = [option for option in options if typing.get_origin(option) is dict]
        if tables and (isinstance(value, Mapping) or len(tables) == len(options)):
            return parse(tables[0], value, path)
        return parse(options[0], value, path)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, path)
    if typing.get_origin(kind) is Literal:
        return _parse_choice(typing.get_args(kind), value, path)
    if typing.get_origin(kind) in (tuple, dict):
        parsed = (
            _parse_sequence(kind, value, path) if typing.get_origin(kind) is tuple else _parse_table(kind, value, path)
        )
        _hold(rules, parsed, value, path)
        return parsed
    if kind is Any:
        return value
    return _hold(rules, _parse_scalar(kind, value, path), value, path)


def _hold(rules: Iterable[Rule], parsed: Any, value: Any, path: str) -> Any:
    for rule in rules:
        if not rule.holds(parsed):
            raise ConfigError(f"{path}={value} {rule.text}")
    return parsed


def as_plain(value: Any) -> Any:
    """A number, an array or a range of NumPy or Python as plain numbers; a path as its text; anything else as it is."""
    if isinstance(value, range):
        return list(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{"model.width": 64, ...}` of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def override(tree: Mapping[str, Any], key: str, value: Any, path: str = "") -> dict[str, Any]:
    """Returns a copy of `tree` with `value` at the dotted `key`; creates missing levels. `path` is for errors."""
    head, _, rest = key.partition(".")
    if not rest:
        return {**tree, head: value}
    inner, path = tree.get(head), f"{path}{head}"
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(
            f"{path}.{rest}={value}: {path} holds a plain value, {inner!r}, so nothing can be set inside it; "
            f"set {path} itself"
        )
    return {**tree, head: override(inner or {}, rest, value, f"{path}.")}


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns "did you mean a, b? " for the words that resemble `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}? " if close else ""


def _parse_dataclass(kind: type, value: Any, path: str, *, tagged: bool = False) -> Any:
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'config'}={value!r} must be a group of keys: {', '.join(_keys(kind))}")
    hints = typing.get_type_hints(kind, include_extras=True)
    prefix = f"{path}." if path else ""
    value = _with_current_names(kind, value, prefix)
    where = f" where {path}.name={value.get('name', kind.name)}" if tagged else ""
    for key in value:
        if key not in hints:
            raise _UnknownKeyError(
                f"{prefix}{key}", value[key], hints, f"{path or 'config'} has {', '.join(hints)}{where}"
            )
    for each in dataclasses.fields(kind):
        if each.name not in value and each.default is each.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{each.name} is missing; {path or 'config'} has the keys {', '.join(hints)}")
    parsed = kind(**{key: parse(hints[key], inner, prefix + key) for key, inner in value.items()})
    if hasattr(parsed, "rules"):
        parsed.rules()
    return parsed


def _with_current_names(kind: type, value: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """The keys of an earlier version under today's names (`RENAMED`)."""
    for old, (new, values) in getattr(kind, "RENAMED", {}).items():
        if old in value and new in value:
            raise ConfigError(
                f"{prefix}{old}={value[old]} and {prefix}{new}={value[new]} are one knob, of which {new} is the name "
                f"today; drop {prefix}{old}"
            )
        if old in value:
            now = values[parse(bool, value[old], prefix + old)]
            value = {new if key == old else key: now if key == old else inner for key, inner in value.items()}
    return value


def current_name(config: Any, key: str, value: Any) -> tuple[str, Any]:
    """A dotted key and its value as today's version of a parsed config has them; as they are where it never changed."""
    group, _, old = key.rpartition(".")
    for name in group.split(".") if group else ():
        config = getattr(config, name, None)
    if old not in getattr(type(config), "RENAMED", {}):
        return key, value
    ((new, now),) = _with_current_names(type(config), {old: value}, f"{group}.").items()
    return f"{group}.{new}", now


def _keys(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _tagged(tagged: Tagged, value: Any, path: str) -> type:
    """The dataclass that `value["name"]` names; the default one where there is no name."""
    by_name = tagged.kinds()
    if type(value) in by_name.values():
        return type(value)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{path}={value!r} must be a group of keys; set {path}.name to one of {', '.join(by_name)}, and its keys"
        )
    name = value.get("name", tagged.default)
    return by_name[_parse_choice(tuple(by_name), name, f"{path}.name", tagged.way_out)]


def _parse_sequence(kind: Any, value: Any, path: str) -> tuple[Any, ...]:
    """Values of one type, from a sequence or from a comma-separated text."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if isinstance(value, bool | int | float):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path}={value!r} must be a list of values, separated by commas")
    return tuple(parse(typing.get_args(kind)[0], each, f"{path}[{place}]") for place, each in enumerate(value))


def _parse_table(kind: Any, value: Any, path: str) -> dict[str, Any]:
    """Values of one type by name; any name is allowed."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}={value!r} must be a group of keys")
    inner = typing.get_args(kind)[1]
    return {str(key): parse(inner, each, f"{path}.{key}") for key, each in value.items()}


def _format_choices(choices: Iterable[str]) -> str:
    return f"choose from {', '.join(choices)}"


def _parse_choice(
    choices: Sequence[str], value: Any, path: str, way_out: Callable[[Iterable[str]], str] = _format_choices
) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise ConfigError(f"{path}={value} is not a choice: {nearest(str(value), choices)}{way_out(choices)}")


def _parse_scalar(kind: type, value: Any, path: str) -> Any:
    """A bool, int, float or str, from such a value or from the text of a command line."""
    words = {"true": True, "false": False}
    parsed: Any = None
    if kind is str and isinstance(value, str):
        parsed = value
    elif kind is bool:
        parsed = value if isinstance(value, bool) else words.get(str(value).lower())
    elif kind in (int, float) and not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            parsed = kind(value) if isinstance(value, str) or kind is float else value
        except (ValueError, OverflowError):
            parsed = None
        if isinstance(parsed, float) and (kind is int or not math.isfinite(parsed)):
            parsed = None
    if parsed is None:
        wanted = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}[kind]
        raise ConfigError(f"{path}={value!r} must be {wanted}")
    return parsed
