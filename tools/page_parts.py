"""Parts of the pages in docs/ that tools write: what is between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

import re
from collections.abc import Sequence
from pathlib import Path


def read_part(page: Path, name: str) -> str:
    """The text between the markers."""
    return _split(page, name)[1]


def write_part(page: Path, name: str, text: str) -> None:
    """Replaces the text between the markers."""
    before, _, after = _split(page, name)
    page.write_text(before + text + after, encoding="utf-8")


def write_lines(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replaces it by whole lines, like those of a table."""
    write_part(page, name, "\n" + "".join(f"{line}\n" for line in lines))


def _split(page: Path, name: str) -> tuple[str, ...]:
    """What is before, between and after; the markers stay outside."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    found = re.fullmatch(f"(.*{begin})(.*)({end}.*)", page.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{page} has no {begin} with {end} after it; put both where the tool is to write")
    return found.groups()
