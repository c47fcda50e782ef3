"""Compares figures of the README with those of commands: `python tools/compare_readme.py OUTPUT REPORT [C4,C10]`.

OUTPUT: what `evaluate` printed of the digits. REPORT: the report.md of the ablation. Of the claims all, or those named,
are compared. Prints each figure that differs, and exits with 1 where there is one. `tools/first_steps.sh` calls it.
"""

import json
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def rows_of_claims(readme: str) -> list[tuple[str, str, str]]:
    """(claim, verdict, figures) of each claim of the first screen."""
    return re.findall(r"^\| (C\d+) .*?\[(refuted|supported.*?)\].*?\| (.*) \|$", readme, re.MULTILINE)


def differing_claims(readme: str, report: str, claims: Collection[str] = ()) -> Iterator[str]:
    """What the README says of the claims (default: all of them) and the report does not."""
    for claim, verdict, figures in rows_of_claims(readme):
        if claims and claim not in claims:
            continue
        found = re.search(rf"^\| {claim} \|.*?\*\*(.*?)\*\*", report, re.MULTILINE)
        if found is None or found[1] != verdict:
            yield f"{claim} is {verdict} in the README, and {found[1] if found else 'missing'} in the report"
        for mean, low, high in re.findall(r"(\d\.\d+) \[(\d\.\d+), (\d\.\d+)\]", figures):
            forwards, backwards = f"{mean} [{low}, {high}]", f"-{mean} [-{high}, -{low}]"
            if forwards not in report and backwards not in report:
                yield f"{claim}: {forwards} of the README is not in the report"


def differing_digits(readme: str, values: dict[str, float]) -> Iterator[str]:
    """What the README says of the run on digits and the evaluation does not. values: the last line of `evaluate`."""
    shown = re.search(r"configs/digits\.py` \| .* ([\d,]+) steps .* test accuracy ([\d.]+) \|", readme)
    here = (f"{values['step']:,}", f"{values['accuracy']:.4f}")
    if shown is None or shown.groups() != here:
        there = " and ".join(shown.groups()) if shown else "nothing"
        yield f"digits: steps and test accuracy are {there} in the README, and {' and '.join(here)} in the run"


def main(output: str, report: str, claims: str = "") -> int:
    """Prints what differs; returns the exit code."""
    readme = README.read_text(encoding="utf-8")
    values = json.loads(Path(output).read_text(encoding="utf-8").splitlines()[-1])
    names = [name for name in claims.split(",") if name]
    differing = [*differing_digits(readme, values)]
    differing += differing_claims(readme, Path(report).read_text(encoding="utf-8"), names)
    for each in differing:
        print(each, file=sys.stderr)
    print(f"{len(differing)} figures of the README differ")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
