"""How often the lab's intervals hold what they are about, by simulation: writes the table in docs/science.md.

Command: python tools/coverage.py
Time: 20 seconds on one core of an AMD EPYC.
`report/statistics.py` has the same shares, rounded, for the reports to say.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from page_parts import write_lines

from flaxformer_lab.report import statistics
from flaxformer_lab.report.statistics import COVERAGE, bootstrap_interval, share_interval

PAGE = Path(__file__).parents[1] / "docs" / "science.md"
SEEDS = (5, 10, 15)
CASES, RESAMPLES = 2000, 400
FAILING = 0.1  # share of runs that end at 0 instead of near 1
Draw = Callable[[np.random.Generator, int], np.ndarray]


def _failing(rng: np.random.Generator, number: int) -> np.ndarray:
    return np.where(rng.uniform(size=number) < FAILING, 0.0, rng.normal(1.0, 0.01, number))


LAWS: dict[str, tuple[Draw, float]] = {  # how values are drawn, and their mean
    "normal": (lambda rng, number: rng.normal(size=number), 0.0),
    "half-normal": (lambda rng, number: np.abs(rng.normal(size=number)), float(np.sqrt(2 / np.pi))),
    "lognormal": (lambda rng, number: rng.lognormal(size=number), float(np.exp(0.5))),
    "one run in ten fails": (_failing, 1.0 - FAILING),
}


def coverage(law: str, seeds: int, cases: int = CASES) -> float:
    """The share of simulated cases in which the 95% interval holds the truth."""
    rng, held, known = np.random.default_rng(seeds), 0, 0
    kind, _, part = law.partition(", the ")
    draw, mean = LAWS[kind]
    for case in range(cases):
        values = draw(rng, seeds)
        if part == "share":
            interval, truth = share_interval(int(np.sum(values > 0.5)), seeds), 1 - FAILING
        elif part == "rest":
            interval, truth = bootstrap_interval(values[values > 0.5], seed=case), 1.0
        else:
            interval, truth = bootstrap_interval(values, seed=case), mean
        known += np.isfinite(interval.low)
        held += interval.low <= truth <= interval.high
    return held / known


def main() -> None:
    """Writes the table."""
    statistics.RESAMPLES = RESAMPLES
    lines = ["| values | " + " | ".join(f"{seeds} seeds" for seeds in SEEDS) + " |", "| --- |" + " --- |" * len(SEEDS)]
    for law in COVERAGE:
        shares = [coverage(law, seeds) for seeds in SEEDS]
        cells = [f"{share:.3f}" if 0.93 <= share <= 0.97 else f"**{share:.3f}**" for share in shares]
        lines.append(f"| {law} | " + " | ".join(cells) + " |")
        print(lines[-1])
    write_lines(PAGE, "coverage", lines)


if __name__ == "__main__":
    main()
