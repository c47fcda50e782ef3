"""Evaluates a checkpoint: `python -m flaxformer_lab.evaluate --workdir=runs/digits [--step=N] [--split=test]`.

Prints a table and, as its last line, one JSON object. In Python, `flaxformer_lab.load_run(workdir)` returns the model.
Both need only the run's folder, and the data for the metrics; nothing in the folder is executed or unpickled.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import flags

from flaxformer_lab.command_line import changes_of, parse_step, run
from flaxformer_lab.config import Config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.tasks import SPLITS, Task
from flaxformer_lab.training.evaluation import make_evaluate
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.initialization import restore_run
from flaxformer_lab.training.logging import Display
from flaxformer_lab.training.state import State

Tree = Any  # a pytree of arrays


@dataclass(frozen=True, repr=False)
class Run:
    """A trained model with its config and state."""

    experiment: Experiment
    state: State

    def __repr__(self) -> str:
        task, model = self.config.task, self.config.model
        data = f" of {task.dataset}" if hasattr(task, "dataset") else ""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Run({model.name} for {task.name}{data}, step {self.step}, {size:,} parameters)"

    @property
    def config(self) -> Config:
        return self.experiment.config

    @property
    def task(self) -> Task:
        return self.experiment.task

    @property
    def model(self) -> PureNetwork:
        """The network as pure functions: `model.apply(params, model_state, inputs)`, `model.intermediates(...)`."""
        return self.experiment.network

    @property
    def params(self) -> Tree:
        return self.state.params

    @property
    def step(self) -> int:
        return int(self.state.step)

    def predict(self, raw: Tree, valid: Tree = None) -> Tree:
        """Outputs for examples as the data set has them, which are preprocessed as in an evaluation.

        raw: images [batch, rows, columns, channels] of the stored type and range, rows of a table [batch, columns],
            texts, or a mapping with this feature; for other tasks what `predict_preprocessed` takes.

        Raises:
            ConfigError: examples of another kind, shape or range than the model was trained on.
            DataError: a value that cannot be used, like a NaN.
        """
        return self.predict_preprocessed(self.task.inputs_of(raw), valid)

    def predict_preprocessed(self, inputs: Tree, valid: Tree = None) -> Tree:
        """Outputs for the model's own inputs: images from -1 to 1, standardised columns, symbols [batch, tokens].

        valid: which tokens are not padding, [batch, tokens]; None: all of them.

        Raises:
            ConfigError: inputs of another structure or shape than the model was trained with, or symbols outside its
                vocabulary.
        """
        misfit = self.task.input_misfit(inputs)
        if misfit:
            raise ConfigError(f"predict: {misfit}")
        self.model.check_symbols(inputs)
        return self._apply(self.state.params, self.state.model_state, inputs, valid)

    @functools.cached_property
    def _apply(self):
        apply = self.model.apply
        return jax.jit(lambda params, model_state, inputs, valid: apply(params, model_state, inputs, valid=valid)[0])

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The metrics of a split, with the program that training used."""
        placed = self.experiment.strategy.place((self.state.params, self.state.model_state))
        return make_evaluate(self.experiment)(*placed, self.task.examples(split))


def load_run(workdir: str | Path, step: int | str | None = None, changes: Mapping[str, Any] | None = None) -> Run:
    """The run in `workdir` at checkpoint `step` (default: the last one; "best": the lowest validation loss).

    changes: of keys that decide nothing (`folder.FREE_KEYS`), like {"training.evaluate_batch_size": 64}.

    Raises:
        ConfigError: a change of another key.
        RunError: the folder is missing, empty or damaged, or has no such checkpoint.
    """
    return Run(*restore_run(workdir, step, changes=changes))


def main(overrides: list[str]) -> None:
    """Evaluates what the flags describe."""
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
