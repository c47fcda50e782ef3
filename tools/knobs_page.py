"""Writes docs/knobs.md from the config dataclasses and the named variants: `python tools/knobs_page.py`.

A knob's meaning is its line under `Attributes:` in the docstring of its dataclass or of a base class. A baseline's knob
without such a line has the Transformer's meaning.
"""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

from flaxformer_lab import registry
from flaxformer_lab.ablation.variants import VARIANTS
from flaxformer_lab.config import Config
from flaxformer_lab.knobs import rows, summary
from flaxformer_lab.model_config import TransformerConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "knobs.md"
HEADER = ("knob", "values", "default", "meaning")
OPENING = """# Knobs

<!-- Written by tools/knobs_page.py from the config dataclasses and the variants; change them and run it again. -->

Every key of a config can be set on the command line: `--config.model.attention.kind=mean`. The parser is strict: an
unknown key, a value out of range or two keys that contradict each other end the command with exit code 2 and an error
that names the nearest valid key or the rule, before anything is written. The source is `flaxformer_lab/config.py`,
`flaxformer_lab/model_config.py` and `flaxformer_lab/task_config/`.
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


def table(body: Iterator[tuple[str, ...]] | list[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> str:
    """A Markdown table."""
    lines = list(body)
    lines = [header, ("---",) * len(header), *lines] if lines else []
    return "\n" * bool(lines) + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
