"""Writes an ablation's report anew, also half way: `python -m flaxformer_lab.report --workdir=runs/cross_dimension`.

results.csv (one row a replica and metric), report.md, and report.html, which opens without a network.
"""

from absl import flags
from rich.console import Console

from flaxformer_lab.ablation.report import write_report
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.command_line import run
from flaxformer_lab.errors import ConfigError


def main(overrides: list[str]) -> None:
    """Writes the report of a folder."""
    if overrides:
        raise ConfigError(f"{overrides[0]}: an ablation keeps the config that it was run with; drop this flag")
    store = Store(WORKDIR.value)
    report = write_report(store.read(), store)
    console = Console(highlight=False, soft_wrap=True)
    for decision in report.decisions:
        console.print(f"{decision.claim.id} {decision.verdict}: {decision.reason}", markup=False)
    for path in report.files:
        console.print(f"written: {path}", markup=False)


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the ablation.", required=True)
    run(main)
