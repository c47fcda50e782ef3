"""Evaluates a checkpoint: `python -m flaxformer_lab.evaluate --workdir=runs/digits [--step=N] [--split=test]`.

Prints a table and, as its last line, one JSON object. It needs only the run's folder and the data; nothing in the
folder is executed or unpickled. In Python: `flaxformer_lab.evaluate(workdir)`.
"""

import json

from absl import flags

from flaxformer_lab.command_line import changes_of, command_alone, parse_step, run
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks import SPLITS
from flaxformer_lab.training.logging import Display, shown_while

command_alone(__name__)


def main(overrides: list[str]) -> None:
    """Evaluates what the flags describe."""
    with shown_while("evaluating"):
        loaded = load_run(WORKDIR.value, parse_step(STEP.value), changes_of(overrides))
        values = loaded.evaluate(SPLIT.value)
    display = Display(steps=1, units=loaded.task.units, batch_size=1)
    rows = [[name, f"{value:.6f}"] for name, value in values.items()]
    display.table(f"{WORKDIR.value}, step {loaded.step}, {SPLIT.value}", ["metric", "value"], rows)
    print(json.dumps({"step": loaded.step, "split": SPLIT.value, **values}))


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, or best; default: the last one.")
    SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the data.")
    run(main)
