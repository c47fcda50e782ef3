"""Pictures of detections: boxes beside the truth, what a query attends to, and the anchors that won."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flaxformer_lab.analysis.figures import COLOURS
from flaxformer_lab.modules.detection import BEFORE_CENTRE

MOST_SHOWN = 8  # images, queries or layers of one figure
FOUND, TRUE, ANCHOR = "#ffb000", "#4cc9f0", "#9d9d9d"


def detections(images: Sequence[Float[np.ndarray, "rows columns channels"]], found: Any, truth: Any, names: list[str]):
    """Each image with what is found, and below it with what is there, where `truth` is known.

    images: from -1 to 1. found, truth: lists of (box in shares, class, score or None) of each image.
    """
    rows = 1 if truth is None else 2
    number = min(len(images), MOST_SHOWN)
    figure = Figure(figsize=(max(2.2 * number, 3), 2.4 * rows), layout="compressed")
    grid = figure.subplots(rows, number, squeeze=False)
    for column in range(number):
        for row, (boxes, colour) in enumerate(((found, FOUND), (truth, TRUE))[:rows]):
            axes = grid[row, column]
            _show(axes, images[column])
            for box, label, score in boxes[column]:
                _draw_box(axes, images[column], box, colour, names[label] + ("" if score is None else f" {score:.2f}"))
    for row, text in enumerate(("found", "true")[:rows]):
        grid[row, 0].set_ylabel(text)
    return figure


def query_attention(
    image: Float[np.ndarray, "rows columns channels"],
    weights: Mapping[str, Float[np.ndarray, "queries rows columns"]],
    boxes: Sequence[tuple[Float[np.ndarray, "4"], str]],
) -> Figure:
    """What the queries that found something attend to: a row for each, a column for each layer.

    weights: over the cells of the image, mean over heads. boxes: of the same queries, with a text.
    """
    layers, number = list(weights)[:MOST_SHOWN], min(len(boxes), MOST_SHOWN)
    figure = Figure(figsize=(2.4 * len(layers) + 0.8, 2.4 * number), layout="compressed")
    grid = figure.subplots(number, len(layers), squeeze=False)
    for query in range(number):
        for column, layer in enumerate(layers):
            axes = grid[query, column]
            _show(axes, image)
            rows, columns = image.shape[:2]
            before = 0.5 + BEFORE_CENTRE
            extent = (-before, columns - before, rows - before, -before)
            axes.imshow(weights[layer][query], cmap=COLOURS, alpha=0.6, extent=extent, interpolation="nearest", vmin=0)
            axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
            _draw_box(axes, image, boxes[query][0], FOUND, boxes[query][1])
            if not query:
                axes.set_title(layer.replace("decoder.blocks.", "decoder block ").split(".")[0], fontsize=8)
    return figure


def winning_anchors(
    image: Float[np.ndarray, "rows columns channels"],
    anchors: Float[np.ndarray, "winners 4"],
    proposals: Float[np.ndarray, "winners 4"],
) -> Figure:
    """The anchors with the highest scores (dashed), and the proposals."""
    figure = Figure(figsize=(4, 4), layout="compressed")
    axes = figure.subplots()
    _show(axes, image)
    for boxes, colour, style in ((anchors, ANCHOR, "--"), (proposals, FOUND, "-")):
        for box in boxes[:MOST_SHOWN]:
            _draw_box(axes, image, box, colour, "", style)
    axes.set_title("anchors that won (dashed), and proposals", fontsize=8)
    return figure


def _show(axes: Axes, image: np.ndarray) -> None:
    pixels = np.clip((image + 1) / 2, 0, 1)
    axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=(), yticks=())


def _draw_box(axes: Axes, image: np.ndarray, box: np.ndarray, colour: str, text: str, style: str = "-") -> None:
    rows, columns = image.shape[:2]
    x0, y0, x1, y1 = np.asarray(box) * [columns, rows, columns, rows] - 0.5
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linestyle=style, linewidth=1.2))
    if text:
        axes.text(x0, y0 - 1, text, color=colour, fontsize=7, clip_on=True)
