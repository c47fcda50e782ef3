"""Draws docs/results/verdicts.svg, the figure of the README: `python tools/readme_figure.py`.

Scores, intervals and bounds are read from docs/results/cross_dimension.md, the report of an ablation:
`python -m flaxformer_lab.ablate --config=configs/ablations/cross_dimension.py --workdir=runs/cross_dimension`.
"""

import re
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
REPORT, FIGURE = RESULTS / "cross_dimension.md", RESULTS / "verdicts.svg"
# For each task of the report: a title, and the label of each variant to show.
PANELS = {
    "rotation": (
        "C1  Rotate a token's features",
        {
            "baseline": "dense projections",
            "diagonal_projection": "diagonal Q, K, V",
            "diagonal output": "diagonal output",
            "per_dimension": "all diagonal,\none head a feature",
        },
    ),
    "pointers": (
        "C4  Follow four pointers",
        {"baseline": "4 heads", "2 heads": "2 heads", "1 head": "1 head", "mean_attention": "mean attention"},
    ),
    "product": (
        "C10  Multiply two features",
        {
            "baseline": "relu FFN",
            "bilinear FFN": "bilinear FFN",
            "ffn_off": "no FFN",
            "linear_ffn": "linear FFN",
            "tanh FFN": "tanh FFN (odd)",
        },
    ),
}


class Score(NamedTuple):
    """A mean over seeds with its 95% interval, and the most that theory allows where it says so."""

    mean: float
    low: float
    high: float
    bound: float | None


def read_scores(report: str, task: str) -> dict[str, Score]:
    """The scores of one task of an ablation's report.md, by variant."""
    section = report.split(f"\n## {task}\n")[1].split("\n## ")[0]
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    place = header.index("bound")
    scores = {}
    for cells in lines:
        mean, low, high = map(float, re.findall(r"-?\d+\.\d+", cells[1]))
        bound = re.search(r"\d+\.\d+", cells[place])
        scores[cells[0]] = Score(mean, low, high, float(bound[0]) if bound else None)
    return scores


def draw(report: str) -> Figure:
    """One panel for each of PANELS, one row for each variant."""
    figure = Figure(figsize=(10.5, 2.7), layout="constrained")
    for axes, (task, (title, labels)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        scores = read_scores(report, task)
        _panel(axes, title, {label: scores[variant] for variant, label in labels.items()})
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _panel(axes: Axes, title: str, scores: dict[str, Score]) -> None:
    for row, score in enumerate(scores.values()):
        error = [[score.mean - score.low], [score.high - score.mean]]
        label = "R² on test examples: mean and 95% interval over 5 seeds" if row == 0 else None
        axes.errorbar(score.mean, row, xerr=error, fmt="o", color="#0072b2", capsize=3, markersize=6, label=label)
    bounds = [(score.bound, row) for row, score in enumerate(scores.values()) if score.bound is not None]
    axes.scatter(*zip(*bounds, strict=True), marker="|", s=220, color="#d55e00", label="bound that theory gives")
    axes.set_yticks(range(len(scores)), scores)
    axes.set(xlim=(-0.15, 1.1), ylim=(len(scores) - 0.5, -0.5), xticks=(0, 0.25, 0.5, 0.75, 1))
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def write(report: Path, figure: Path) -> None:
    """Draws the figure of a report.md into a file; the same report gives the same bytes."""
    with rc_context({"svg.hashsalt": FIGURE.stem}):
        draw(report.read_text(encoding="utf-8")).savefig(figure, metadata={"Date": None})


if __name__ == "__main__":
    write(REPORT, FIGURE)
    print(f"written: {FIGURE}")
