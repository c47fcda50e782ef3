"""Prints finished runs as a Markdown table: `python tools/tabulate_runs.py runs/digits*`.

One row a run: the keys in which it differs from the first one, its parameters, the operations of one forward pass
over an example, and the figures of its last step. Everything comes from the runs' folders.
"""

import json
import sys
from pathlib import Path

from flaxformer_lab.config import as_dict
from flaxformer_lab.errors import LabError
from flaxformer_lab.models.cost import forward_flops, parameters
from flaxformer_lab.parsing import flatten
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.folder import RunFolder


def last_figures(metrics: Path) -> dict[str, float]:
    """`{"test accuracy": ...}`: the last value of each figure that is not of the training split."""
    figures = {}
    for line in metrics.read_text().splitlines():
        entry = json.loads(line)
        if entry["split"] != "train":
            figures[f"{entry['split']} {entry['name']}"] = entry["value"]
    return figures


def main(workdirs: list[str]) -> None:
    """Prints the table of the runs in `workdirs`; the first is what the others are compared to."""
    rows, baseline = [], None
    for workdir in workdirs:
        folder = RunFolder(workdir)
        config, metadata = folder.read()
        experiment = make_experiment(config, metadata)
        state = experiment.abstract_state
        flops = forward_flops(experiment.network, state.params, state.model_state, experiment.task.input_spec(1))
        rows.append((folder.path.name, parameters(state.params), flops, last_figures(folder.metrics)))
        flat = flatten(as_dict(config))
        baseline = baseline or flat
        changed = [f"{key}={value}" for key, value in flat.items() if baseline.get(key) != value]
        print(f"{folder.path.name}: {', '.join(changed) or 'the baseline'}", file=sys.stderr)
    names = sorted({name for *_, figures in rows for name in figures})
    print("| run | parameters | forward MFLOPs an example |", *(f"{name} |" for name in names))
    print("|---|---|---|" + "---|" * len(names))
    for name, number, flops, figures in rows:
        cells = [f"{figures[key]:.4f}" if key in figures else "" for key in names]
        print(f"| {name} | {number:,} | {flops / 1e6:,.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python tools/tabulate_runs.py WORKDIR [WORKDIR ...]")
    try:
        main(sys.argv[1:])
    except LabError as error:
        sys.exit(f"error: {error}")
