"""Figures of measures. One colour map, cividis, that reads the same to colour-blind eyes and in greyscale."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = "cividis"
MARKERS = "osD^vPX*"  # a second sign beside the colour
LARGEST_MAPS = 64  # heads shown in one figure


def save_figures(values: Mapping[str, object], folder: Path, title: str) -> list[Path]:
    """Draws what the values allow into `folder` and returns the files: mixing, attention maps, depth."""
    figures = {
        "feature_mixing": lambda: energy_map(values["feature_energy"], "feature", title),
        "token_mixing": lambda: energy_map(values["token_energy"], "token", title),
        "attention_maps": lambda: attention(_by_layer(values, "attention_map"), title),
        "depth": lambda: through_depth(values, title),
    }
    present = {
        "feature_mixing": "feature_energy" in values,
        "token_mixing": "token_energy" in values,
        "attention_maps": bool(_by_layer(values, "attention_map")),
        "depth": "rank_residual" in values,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in figures.items():
        if present[name]:
            paths.append(folder / f"{name}.png")
            draw().savefig(paths[-1], dpi=150)
    return paths


def energy_map(matrix: Float[np.ndarray, "outputs inputs"], axis: str, title: str) -> Figure:
    """How much of each input feature (or token) reaches each output one: each row's shares of its energy."""
    rows = np.nansum(matrix, axis=1, keepdims=True)
    shares = np.divide(matrix, rows, out=np.zeros_like(matrix), where=rows > 0)
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=COLOURS, vmin=0, interpolation="nearest")
    axes.set(xlabel=f"input {axis}", ylabel=f"output {axis}", title=f"{title}\nwhere each output {axis} looks")
    figure.colorbar(image, ax=axes, label="share of the row's Jacobian energy", shrink=0.85)
    return figure


def attention(maps: Mapping[str, Float[np.ndarray, "heads tokens tokens"]], title: str) -> Figure:
    """The attention weights of one example: a row a layer, a column a head."""
    heads = min(max(len(layer) for layer in maps.values()), max(1, LARGEST_MAPS // len(maps)))
    figure = Figure(figsize=(1.2 + 1.8 * heads, 0.9 + 1.8 * len(maps)), layout="constrained")
    grid = figure.subplots(len(maps), heads, squeeze=False)
    largest = max(float(layer.max()) for layer in maps.values())
    for row, (name, layer) in zip(grid, maps.items(), strict=True):
        for number, axes in enumerate(row):
            if number >= len(layer):
                axes.axis("off")
                continue
            image = axes.imshow(layer[number], cmap=COLOURS, vmin=0, vmax=largest, interpolation="nearest")
            axes.set_title(f"{name.replace('blocks.', 'block ')}, head {number}", fontsize=8)
            axes.tick_params(labelsize=6)
    grid[-1, 0].set(xlabel="key token", ylabel="query token")
    figure.colorbar(image, ax=grid, label="attention weight", shrink=0.7)
    dropped = max(len(layer) for layer in maps.values()) - heads
    figure.suptitle(title + (f" (the first {heads} heads; {dropped} more)" if dropped else ""), fontsize=10)
    return figure


def through_depth(values: Mapping[str, object], title: str) -> Figure:
    """Rank residual, stable rank and scale heterogeneity from the embedding to the last block."""
    panels = (
        ("rank_residual", "rank residual (0: tokens alike)"),
        ("stable_rank", "stable rank (directions)"),
        ("scale_heterogeneity", "scale heterogeneity (log10)"),
    )
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _line(axes, np.asarray(values[name]), label)
    figure.suptitle(title, fontsize=10)
    return figure


def _line(axes: Axes, series: Float[np.ndarray, " layers"], label: str) -> None:
    axes.plot(np.arange(len(series)), series, color="black", marker=MARKERS[0], markersize=4)
    axes.set(xlabel="after block (0: the embedding)", ylabel=label)
    axes.set_ylim(bottom=min(0.0, float(series.min())))
    axes.set_xticks(np.unique(np.linspace(0, len(series) - 1, min(len(series), 8)).round().astype(int)))
    axes.spines[["top", "right"]].set_visible(False)


def _by_layer(values: Mapping[str, object], name: str) -> dict[str, np.ndarray]:
    return {key.removesuffix(f".{name}"): value for key, value in values.items() if key.endswith(f".{name}")}
