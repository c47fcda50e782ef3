"""Plots of measures. One colour map, cividis, which is readable with colour blindness and in greyscale."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = matplotlib.colormaps["cividis"].with_extremes(bad="lightgrey")
MOST_HEADS, MOST_LAYERS = 16, 24  # shown in one figure
FIGURES = ("feature_mixing", "token_mixing", "channel_mixing", "attention_maps", "depth")


def save_figures(values: Mapping[str, object], folder: Path, title: str) -> list[Path]:
    """Draws what the values allow into `folder` and returns the files: mixing, attention maps, depth."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in draw(values, title).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return paths


def draw(values: Mapping[str, object], title: str) -> dict[str, Figure]:
    """Those of FIGURES that the values allow."""
    figures = {}
    for axis in ("feature", "token", "channel"):
        if f"{axis}_energy" in values:
            figures[f"{axis}_mixing"] = energy_map(values[f"{axis}_energy"], axis, title)
    maps = _by_layer(values, "attention_map")
    if maps:
        figures["attention_maps"] = attention(maps, title)
    if "rank_residual" in values:
        figures["depth"] = through_depth(values, title)
    return figures


def energy_map(matrix: Float[np.ndarray, "outputs inputs"], axis: str, title: str) -> Figure:
    """How much of each input feature (or token) reaches each output one, as shares of each row's energy.

    A row that was never sampled is grey.
    """
    rows = np.sum(matrix, axis=1, keepdims=True)
    shares = matrix / np.where(rows == 0, 1, rows)
    figure = Figure(figsize=(5.6, 5.0), layout="compressed")
    axes = figure.subplots()
    # The diagonal, to which a skip connection adds, would hide the rest on a linear scale.
    image = axes.imshow(shares, cmap=COLOURS, norm=PowerNorm(0.5, vmin=0), interpolation="nearest")
    axes.set(xlabel=f"input {axis}", ylabel=f"output {axis}")
    _whole_ticks(axes, 8)
    figure.colorbar(image, ax=axes, label="share of the row's Jacobian energy", shrink=0.85)
    _entitle(figure, f"{title}: what reaches each {axis}")
    return figure


def attention(maps: Mapping[str, Float[np.ndarray, "heads tokens tokens"]], title: str) -> Figure:
    """The attention weights of one example: one row per layer, one column per head."""
    chosen = np.unique(np.linspace(0, len(maps) - 1, min(len(maps), MOST_LAYERS)).round().astype(int))
    names = [list(maps)[number] for number in chosen]
    most = max(len(maps[name]) for name in names)
    heads = min(most, MOST_HEADS)
    size = np.clip(14 / max(len(names), heads), 0.8, 1.8)
    figure = Figure(figsize=(max(1.6 + size * heads, 4.5), 1.2 + size * len(names)), layout="compressed")
    grid = figure.subplots(len(names), heads, squeeze=False)
    largest = max(float(maps[name].max()) for name in names)
    for row, name in zip(grid, names, strict=True):
        row[0].set_ylabel(f"{name.replace('blocks.', 'block ')}\nquery token", fontsize=8)
        for number, axes in enumerate(row):
            image = axes.imshow(maps[name][number], cmap=COLOURS, vmin=0, vmax=largest, interpolation="nearest")
            axes.tick_params(labelsize=6, left=number == 0, labelleft=number == 0, bottom=False, labelbottom=False)
            _whole_ticks(axes, 3)
    for axes in grid[-1]:
        axes.tick_params(bottom=True, labelbottom=True)
        axes.set_xlabel("key token", fontsize=8)
    for number, axes in enumerate(grid[0]):
        axes.set_title(f"head {number}", fontsize=8)
    figure.colorbar(image, ax=grid, label="attention weight", shrink=max(0.3, min(0.8, 4 / figure.get_figheight())))
    left_out = [f"{len(maps)} layers"] * (len(names) < len(maps)) + [f"{most} heads"] * (heads < most)
    _entitle(figure, title + (f" ({len(names)} x {heads} maps out of {' x '.join(left_out)})" if left_out else ""))
    return figure


def through_depth(values: Mapping[str, object], title: str) -> Figure:
    """Rank residual, stable rank and scale heterogeneity from the embedding to the last block."""
    panels = (
        ("rank_residual", "rank residual (0: equal tokens)"),
        ("stable_rank", "stable rank (directions)"),
        ("scale_heterogeneity", "scale heterogeneity (log10)"),
    )
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _line(axes, np.asarray(values[name]), label)
    _entitle(figure, title)
    return figure


def _line(axes: Axes, series: Float[np.ndarray, " layers"], label: str) -> None:
    finite = series[np.isfinite(series)]
    axes.plot(np.arange(len(series)), series, color="black", marker="o", markersize=4)
    axes.set(xlabel="after layer (0: the embedding)", ylabel=label, xlim=(-0.3, len(series) - 0.7))
    axes.set_ylim(bottom=min(0.0, float(finite.min(initial=0.0))))
    axes.set_xticks(np.unique(np.linspace(0, len(series) - 1, min(len(series), 8)).round().astype(int)))
    axes.spines[["top", "right"]].set_visible(False)


def _whole_ticks(axes: Axes, number: int) -> None:
    """Ticks only at integers."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(number, integer=True))


def _entitle(figure: Figure, title: str) -> None:
    figure.suptitle(textwrap.fill(title, int(11 * figure.get_figwidth())), fontsize=10)


def _by_layer(values: Mapping[str, object], name: str) -> dict[str, np.ndarray]:
    return {key.removesuffix(f".{name}"): value for key, value in values.items() if key.endswith(f".{name}")}
