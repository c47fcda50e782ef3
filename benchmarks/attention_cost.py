"""Verdicts on two claims of docs/science.md, C9 and C15, from the results of attention_length.py, and a plot.

A question asks whether a ratio of two times is above a threshold. It is answered where the 95% interval over rounds
lies on one side, and open where the interval contains the threshold.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxformer_lab.ablation.claim_config import Verdict
from flaxformer_lab.report.claims import answer_to, conclude
from flaxformer_lab.report.statistics import bootstrap_interval

Rows = Sequence[dict[str, Any]]
Ratios = list[float]
FLAT = 1.2  # times per token that differ by a smaller factor are called constant
# Colours that are distinct with colour blindness (Okabe & Ito 2008), and marks for a greyscale print.
STYLES = {
    "softmax": ("#0072b2", "o", "softmax, exact, in blocks (Flash)"),
    "lightning": ("#d55e00", "s", "lightning"),
    "linear": ("#009e73", "^", "linear (elu + 1)"),
    "channel": ("#cc79a7", "D", "channel (over features)"),
    "mean": ("#56b4e9", "v", "mean"),
}


def decide_claims(grown: Rows, wide: Rows) -> dict[str, dict[str, Any]]:
    """The claims with their verdicts and answers; forward and backward pass together.

    grown: rows of single kinds whose lengths alternated; wide: rows of several widths.
    """
    narrowest, widest = (pick(row["head_dim"] for row in wide) for pick in (min, max))
    tokens = wide[0]["length"]
    return {
        "C9": _decided(
            _c9,
            ("does a token cost attention over features more in the longest sequence?", *_growth(grown, "channel")),
            (
                f"does it cost more than attention over {tokens} tokens, with {narrowest} features?",
                *_beside(wide, narrowest),
            ),
            (f"with {widest} features?", *_beside(wide, widest)),
        ),
        "C15": _decided(
            _c15,
            ("does a token cost Lightning attention more in the longest sequence?", *_growth(grown, "lightning")),
            ("does it cost exact attention in blocks more?", *_growth(grown, "softmax")),
        ),
    }


def _c9(longer: bool, narrow: bool, wide: bool) -> tuple[Verdict, str]:
    if wide and not (longer or narrow):
        return (
            "supported only when",
            "features are many beside tokens: its cost grows with the square of a head's width, but not with length",
        )
    if not (longer or narrow or wide):
        return "refuted", "attention over features is the cheaper one at every length and width measured"
    return "supported", "attention over features is the dearer one"


def _c15(lightning: bool, exact: bool) -> tuple[Verdict, str]:
    if exact and not lightning:
        return (
            "supported only when",
            "attention is linear: Lightning's time a token is constant; exact attention in blocks saves memory alone",
        )
    if lightning:
        return "refuted", "a longer sequence makes each token dearer, for Lightning too"
    return "supported", "a token costs the same at every length"


def _decided(rule, *questions: tuple[str, Ratios, float]) -> dict[str, Any]:
    answers = []
    for question, ratios, threshold in questions:
        interval = bootstrap_interval(ratios)
        found = {"ratio": interval.mean, "low": interval.low, "high": interval.high, "threshold": threshold}
        rounded = {name: round(value, 3) for name, value in found.items()}
        answers.append({"question": question, **rounded, "answer": answer_to(interval, threshold)})
    verdict, reason = conclude(rule, [each["answer"] for each in answers]) or ("undecided", "an interval is too wide")
    return {"verdict": verdict, "reason": reason, "answers": answers}


def _growth(grown: Rows, kind: str) -> tuple[Ratios, float]:
    """Time per token of the longest sequence over the shortest, and the threshold.

    By a power of the length that is fitted to all lengths, so that it does not rest on two of them.
    """
    own = _whole(grown, kind)
    logs = np.log([row["length"] for row in own])
    times = np.log([row["rounds_in_milliseconds"] for row in own])  # [lengths, rounds]
    exponents = np.polyfit(logs, times, 1)[0]
    return list(np.exp((exponents - 1) * (logs[-1] - logs[0]))), FLAT


def _beside(wide: Rows, width: int) -> tuple[Ratios, float]:
    """Time of attention over features divided by attention over tokens, and the threshold."""
    of = {kind: next(row for row in _whole(wide, kind) if row["head_dim"] == width) for kind in ("channel", "softmax")}
    pairs = zip(*(of[kind]["rounds_in_milliseconds"] for kind in ("channel", "softmax")), strict=True)
    return [a / b for a, b in pairs], 1.0


def _whole(rows: Rows, kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind and row["backward"]]


def draw_cost(rows: Rows, wide: Rows, path: Path, machine: str) -> None:
    """Plots time per token against tokens, and against features, into an SVG file."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = path.stem
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axes, found, axis, label in (
        (left, rows, "length", f"tokens (width {rows[0]['heads'] * rows[0]['head_dim']}, {rows[0]['heads']} heads)"),
        (right, wide, "head_dim", f"features ({wide[0]['length']} tokens, 1 head)"),
    ):
        for kind, (colour, mark, name) in STYLES.items():
            own = _whole(found, kind)
            if own:
                points = ([row[axis] for row in own], [row["microseconds_a_token"] for row in own])
                axes.plot(*points, color=colour, marker=mark, label=name)
        ticks = sorted({row[axis] for row in found})
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="µs a token, forward and backward")
        axes.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.suptitle(f"What attention costs a token: {machine}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(f"written to {path}")
