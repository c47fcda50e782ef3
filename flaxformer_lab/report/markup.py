"""HTML and SVG as nested calls. Other text is escaped: no name and no error message becomes markup."""

import html
from collections.abc import Iterable
from typing import Any

VOID = {"br", "link", "meta", "wbr"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """<name attributes>children</name>.

    A child is text, markup, a number, None (left out), or an iterable of children. In an attribute's name an
    underscore stands for a hyphen, and one at the end is dropped (`class_`); the value None leaves it out, and True
    writes the name alone.
    """
    text = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in VOID:
        return Markup(f"<{name}{text}>")
    return Markup(f"<{name}{text}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Children one after another."""
    return Markup("".join(_child(child) for child in children))


def breakable(name: str) -> Markup:
    """A name that may be broken into lines after each underscore."""
    return Markup(html.escape(name).replace("_", "_<wbr>"))


def scrolling(label: str, table: Markup) -> Markup:
    """A box in which a wide table scrolls, by keyboard too."""
    return tag("div", table, class_="scroll", role="region", aria_label=label, tabindex="0")


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return html.escape(str(child))
    return join(child)


def _attribute(key: str, value: Any) -> str:
    key = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {key}"
    text = f"{round(value, 2):g}" if isinstance(value, float) else str(value)
    return f' {key}="{html.escape(text)}"'
