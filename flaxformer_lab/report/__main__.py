"""Writes an ablation's report again, also half way: `python -m flaxformer_lab.report --workdir=runs/cross_dimension`.

results.csv (one row per replica and metric), report.md, and report.html, which opens without a network.
"""

from absl import flags

from flaxformer_lab.ablation.store import Store
from flaxformer_lab.command_line import run
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.report.write import print_report, write_report


def main(overrides: list[str]) -> None:
    """Writes the report of a folder."""
    if overrides:
        raise ConfigError(f"{overrides[0]}: an ablation keeps the config that it was run with; drop this flag")
    store = Store(WORKDIR.value)
    print_report(write_report(store.read(), store))


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the ablation.", required=True)
    run(main)
