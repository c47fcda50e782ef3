"""Measures a trained checkpoint: `python -m flaxformer_lab.measure --workdir=runs/digits [--measures=mixing,depth]`.

Prints a table; writes WORKDIR/measures/STEP/measures.json, which begins with the step, the split and the number of
examples, and plots: which inputs reach each feature and each token, attention maps by head, rank and scale by depth.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags

from flaxformer_lab.analysis.estimate import Estimate
from flaxformer_lab.analysis.figures import FIGURES, save_figures
from flaxformer_lab.analysis.measures import MEASURES, Values, as_json, left_out, measure
from flaxformer_lab.command_line import changes_of, command_alone, parse_step, run, split_names
from flaxformer_lab.errors import RunError
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks import SPLITS
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.logging import Display, shown_while

command_alone(__name__)


def main(overrides: list[str]) -> None:
    """Measures what the flags describe."""
    with shown_while("measuring"):
        loaded = load_run(WORKDIR.value, parse_step(STEP.value), changes_of(overrides))
        subject = loaded.subject(SPLIT.value, EXAMPLES.value)
        values = measure(subject, split_names(MEASURES_FLAG.value), num_random_vectors=RANDOM_VECTORS.value)
    display = Display(steps=1, units=loaded.task.units, batch_size=1)
    title = f"{WORKDIR.value}, step {loaded.step}, {len(subject.vectors)} examples of {SPLIT.value}"
    display.table(title, ["measure", "value", "standard error"], _rows(values))
    if not MEASURES_FLAG.value:
        for name, reason in left_out(subject).items():
            display.print(f"left out: {name}: {reason}")
    workdir = RunFolder(WORKDIR.value).path
    title = f"{workdir.name}, step {loaded.step}, {SPLIT.value}"
    of = {"step": loaded.step, "split": SPLIT.value, "examples": len(subject.vectors)}
    for path in write(values, workdir / "measures" / str(loaded.step), title, of):
        display.print(f"written: {path}")


def write(values: Values, folder: Path, title: str, of: Mapping[str, int | str]) -> list[Path]:
    """Writes measures.json and the plots into `folder`, each atomically; returns them.

    of: what was measured, which measures.json says first.

    Plots of an earlier call that were not drawn now are removed, so that all files there belong together.

    Raises:
        RunError: the folder cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        figures = save_figures(values, partial, title)
        content = json.dumps({**of, **as_json(values)}, allow_nan=False)
        (partial / "measures.json").write_text(content + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        paths = [path.replace(folder / path.name) for path in [partial / "measures.json", *figures]]
        for name in FIGURES:
            if folder / f"{name}.png" not in paths:
                (folder / f"{name}.png").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}; make room for it") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return paths


def _rows(values: Values) -> list[list[str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, Estimate):
            rows.append([name, f"{value.value:.4f}", f"{value.standard_error:.4f}"])
        elif isinstance(value, np.ndarray) and value.ndim == 1:
            rows.append([name, " ".join(f"{each:.3f}" for each in value), ""])
        elif not isinstance(value, np.ndarray):
            rows.append([name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}", ""])
    return rows


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, or best; default: the last one.")
    SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the data.")
    EXAMPLES = flags.DEFINE_integer("examples", 64, "How many examples, at least 2.", lower_bound=2)
    RANDOM_VECTORS = flags.DEFINE_integer(
        "random_vectors", 128, "Random sign vectors, where not all Jacobian rows are computed.", lower_bound=1
    )
    MEASURES_FLAG = flags.DEFINE_multi_string(
        "measures", [], f"Which ones, separated by commas, of {', '.join(MEASURES)}; default: all that apply."
    )
    run(main)
