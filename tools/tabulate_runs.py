"""Prints finished runs as a Markdown table: `python tools/tabulate_runs.py runs/digits*`.

One row per run: the keys that differ from the first run, the parameters, the operations of one forward pass over an
example, and the metrics of the last step. Everything is read from the runs' folders.
"""

import sys
from pathlib import Path

from flaxformer_lab.config import as_dict
from flaxformer_lab.errors import LabError
from flaxformer_lab.models.cost import forward_flops, parameters
from flaxformer_lab.parsing import flatten
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.logging import read_metrics


def last_metrics(log: Path) -> dict[str, float]:
    """`{"test accuracy": ...}`: the last value of each metric of the validation and test split."""
    metrics = {}
    for entry in read_metrics(log):
        if entry["split"] != "train":
            metrics[f"{entry['split']} {entry['name']}"] = entry["value"]
    return metrics


def main(workdirs: list[str]) -> None:
    """Prints the table of the runs in `workdirs`; the others are compared with the first."""
    rows, baseline = [], None
    for workdir in workdirs:
        folder = RunFolder(workdir)
        config, metadata = folder.read()
        experiment = make_experiment(config, metadata)
        state = experiment.abstract_state
        flops = forward_flops(experiment.network, state.params, state.model_state, experiment.task.input_spec(1))
        rows.append((folder.path.name, parameters(state.params), flops, last_metrics(folder.metrics)))
        flat = flatten(as_dict(config))
        baseline = baseline or flat
        changed = [f"{key}={value}" for key, value in flat.items() if baseline.get(key) != value]
        print(f"{folder.path.name}: {', '.join(changed) or 'the baseline'}", file=sys.stderr)
    names = sorted({name for *_, metrics in rows for name in metrics})
    print("| run | parameters | forward MFLOPs an example |", *(f"{name} |" for name in names))
    print("|---|---|---|" + "---|" * len(names))
    for name, number, flops, metrics in rows:
        cells = [f"{metrics[key]:.4f}" if key in metrics else "" for key in names]
        print(f"| {name} | {number:,} | {flops / 1e6:,.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python tools/tabulate_runs.py WORKDIR [WORKDIR ...]")
    try:
        main(sys.argv[1:])
    except LabError as error:
        sys.exit(f"error: {error}")
