"""Evaluates a checkpoint: `python -m flaxformer_lab.evaluate --workdir=runs/digits [--step=N] [--split=test]`.

With --csv=FILE it evaluates a table's model on new rows that have the target, and writes their scores too.

Prints a table and, as its last line, one JSON object, with null where a figure is NaN. It needs only the run's folder
and the data; nothing in the folder is executed or unpickled. In Python: `flaxformer_lab.evaluate(workdir)`.
"""

import json
import math

from absl import flags

from flaxformer_lab import predict
from flaxformer_lab.command_line import changes_of, command_alone, parse_step, run
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks import SPLITS
from flaxformer_lab.training.logging import Display, shown_while

command_alone(__name__)


def main(overrides: list[str]) -> None:
    """Evaluates what the flags describe."""
    if OUTPUT.value and not CSV.value:
        raise ConfigError(f"--output={OUTPUT.value} is for the scores of --csv; add --csv=FILE, or leave --output out")
    if SPLIT.value and CSV.value:
        raise ConfigError(f"--split={SPLIT.value}: a file has no splits; leave --split or --csv={CSV.value} out")
    split = SPLIT.value or "test"
    with shown_while("evaluating"):
        loaded = load_run(WORKDIR.value, parse_step(STEP.value), changes_of(overrides))
        if CSV.value and hasattr(loaded.task, "histories_in"):
            raise ConfigError(
                f"--csv={CSV.value}: rankings of purchases have no metrics on a file; rank its users with python -m "
                "flaxformer_lab.predict, or leave --csv out"
            )
        if CSV.value:
            found, path = predict.write(loaded, CSV.value, OUTPUT.value)
            values, part = found.metrics, CSV.value
        else:
            values, part = loaded.evaluate(split), split
    if not values:
        raise DataError(
            f"{CSV.value} has no column {loaded.task.metadata['target_column']}, the target, to evaluate on; "
            "python -m flaxformer_lab.predict scores rows without it"
        )
    display = Display(steps=1, units=loaded.task.units, batch_size=1)
    rows = [[name, f"{value:.6f}"] for name, value in values.items()]
    display.table(f"{WORKDIR.value}, step {loaded.step}, {part}", ["metric", "value"], rows)
    if CSV.value:
        display.print(f"written: {path}")
    known = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
    print(json.dumps({"step": loaded.step, "split": part, **known}))


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, or best; default: the last one.")
    CSV = flags.DEFINE_string("csv", None, "New rows of a table, with the target, instead of a split.")
    OUTPUT = flags.DEFINE_string("output", None, "With --csv: where scores go; default: WORKDIR/predictions/NAME.csv.")
    SPLIT = flags.DEFINE_enum("split", None, SPLITS, "Which part of the data; default: test.")
    run(main)
