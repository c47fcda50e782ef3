"""Matplotlib figures as SVG inside an HTML page, in the colours of the page's style sheet, light or dark.

A figure names colours by role (`COLOURS["better"]`), and the page says what a role looks like (`--better` in page.css).
What Matplotlib writes is reduced to paths and texts without ids and references, so that figures cannot disturb each
other.
"""

import io
import re
from collections.abc import Mapping
from xml.etree import ElementTree

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flaxformer_lab.report.markup import Markup, join, tag

ROLES = ("ink", "muted", "grid", "surface", "variant", "baseline", "bound", "better", "worse", "level")
COLOURS = {role: f"#0001{number:02x}" for number, role in enumerate(ROLES)}  # stand-ins, which `as_svg` replaces
NAMESPACE = "{http://www.w3.org/2000/svg}"
Box = tuple[int | float, int | float, int | float, int | float]

# For functions that make a figure and turn it into SVG.
styled = matplotlib.rc_context(
    {
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": COLOURS["muted"],
        **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
        "figure.dpi": 72,  # a pixel is a point
        "figure.facecolor": "none",
        "font.size": 10.5,
        "grid.color": COLOURS["grid"],
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "flaxformer_lab",
        "xtick.major.pad": 5,
        "text.color": COLOURS["muted"],
        "text.parse_math": False,  # a dollar sign in a name is one
        **{
            f"{axis}tick.{key}": value
            for axis in "xy"
            for key, value in {"color": COLOURS["muted"], "major.size": 0, "minor.size": 0}.items()
        },
    }
)


def make_axes(width: int | float, height: int | float, box: Box) -> tuple[Figure, Axes]:
    """A figure of so many pixels, and axes between the left, lower, right and upper margins of the box."""
    figure = Figure(figsize=(width / 72, height / 72))
    left, lower, right, upper = box
    size = (left / width, lower / height, (width - left - right) / width, (height - lower - upper) / height)
    return figure, figure.add_axes(size)


def annotate(artist: Artist, class_: str, title: str = "") -> None:
    """Gives an artist a class in the SVG, and a title that shows where a pointer rests on it."""
    artist.set_gid(f"{class_}|{title}")


def as_svg(figure: Figure, label: str, class_: str = "chart") -> Markup:
    """An image with its text alternative, which screen readers read aloud. The same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    paths = {path.get("id", ""): path for defs in root.iter(f"{NAMESPACE}defs") for path in defs}
    _, _, width, height = root.attrib["viewBox"].split()
    content = [_convert(child, paths) for child in root]
    return tag("svg", content, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, class_=class_)


# What the page's style sheet says for its figures, for a figure that is a file of its own.
ALONE = """text{font:10.5px system-ui,sans-serif}svg{background:#fff;--ink:#1c2024;--muted:#5b636b;--grid:#e7e8e4;
--surface:#fff;--variant:#0868ac;--baseline:#4a5058;--level:#8a9096}
@media (prefers-color-scheme:dark){svg{background:#1d2125;--ink:#e8e9e6;--muted:#a3abb2;--grid:#2c3237;
--surface:#1d2125;--variant:#6db5ee;--baseline:#b9c0c6;--level:#8a9096}}"""


def as_file(svg: Markup) -> str:
    """A figure of `as_svg` as an SVG file: in light or dark colours, as the viewer prefers."""
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="{NAMESPACE[1:-1]}"><style>{ALONE}</style>{rest}\n'


def _convert(element: ElementTree.Element, paths: Mapping[str, ElementTree.Element]) -> Markup | None:
    kind, style = element.tag.removeprefix(NAMESPACE), _style(element.get("style", ""))
    if kind == "g":
        class_, is_ours, title = element.get("id", "").partition("|")
        children = join(_convert(child, paths) for child in element)
        return tag("g", tag("title", title) if title else None, children, class_=class_) if is_ours else children
    if kind == "path":
        return None if style == "fill:none" else tag("path", d=_rounded(element.get("d", "")), style=style)
    if kind == "use":  # a mark or an area: what it refers to, in its place
        path = paths[element.get("{http://www.w3.org/1999/xlink}href", "").removeprefix("#")]
        shape, (x, y) = _rounded(path.get("d", "")), (float(element.get(axis, 0)) for axis in "xy")
        style = style or _style(path.get("style", ""))
        if "C" in shape:  # the only curves are round marks, which begin at their lower end: M 0 radius
            return tag("circle", cx=x, cy=y, r=float(shape.split()[2]), style=style)
        return tag("path", d=shape, style=style, transform=f"translate({x:g} {y:g})")
    if kind == "text":
        turned = element.get("transform", "").replace("rotate(-0 ", "rotate(0 ")
        place = {} if turned.startswith("rotate(0 ") else {"transform": _rounded(turned)}
        x, y = (float(element.get(axis, 0)) for axis in "xy")
        return tag("text", element.text or "", x=x, y=y, style=style, **place)
    return None  # definitions and metadata


def _style(style: str) -> str | None:
    """With the page's colours, and without fonts, which are the page's too."""
    kept = [each for each in style.replace(": ", ":").split("; ") if not each.startswith("font")]
    return re.sub("#0001([0-9a-f]{2})", lambda m: f"var(--{ROLES[int(m[1], 16)]})", ";".join(kept)) or None


def _rounded(numbers: str) -> str:
    """With four digits, which is a tenth of a pixel or less, and single spaces."""
    return " ".join(re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.4g}", numbers).split())
