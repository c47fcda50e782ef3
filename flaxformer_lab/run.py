"""A trained model in Python: `load_run(workdir)` opens a run's folder, `train(config, workdir)` makes one.

Opening needs only the folder, and the data for the metrics; nothing in the folder is executed or unpickled.
"""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from flaxformer_lab.analysis.measures import Values, measure
from flaxformer_lab.analysis.subject import Subject
from flaxformer_lab.config import Config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.hooks import NamedHooks
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.tasks import Task
from flaxformer_lab.training import loop
from flaxformer_lab.training.evaluation import first_examples, make_evaluate
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.initialization import restore_run
from flaxformer_lab.training.loggers import DEFAULT_LOGGERS, Callback, Logger
from flaxformer_lab.training.logging import read_metrics
from flaxformer_lab.training.state import State

if TYPE_CHECKING:
    from flaxformer_lab.export.formats import Exported

Tree = Any  # a pytree of arrays


@dataclass(frozen=True, repr=False)
class Run:
    """A trained model with its config and state."""

    experiment: Experiment
    state: State
    workdir: Path

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

        Logits; of a regression the numbers in their own units, [batch].

        raw: images [batch, rows, columns, channels] of the stored type and range, the path of an image file or a list
            of such, rows of a table [batch, columns], texts, or a mapping with this feature; for a table of your own
            the path of a CSV file, a DataFrame, a mapping of names to lists, or a list of rows; for other tasks what
            `predict_preprocessed` takes.

        Raises:
            ConfigError: examples of another kind, shape or range than the model was trained on.
            DataError: a value that cannot be used, like a NaN.
        """
        return self.task.predictions_of(self.predict_preprocessed(self.task.inputs_of(raw), valid))

    def predict_preprocessed(self, inputs: Tree, valid: Tree = None) -> Tree:
        """Outputs for the model's own inputs: images from -1 to 1, standardised columns, symbols [batch, tokens].

        valid: which tokens are not padding, [batch, tokens]; None: all of them.

        Raises:
            ConfigError: inputs of another structure or shape than the model was trained with, or symbols outside its
                vocabulary.
        """
        self._refuse_misfit(inputs)
        valid = self.task.valid_of(inputs) if valid is None else valid
        return self._apply(*self._variables, inputs, valid)

    def run_with_cache(
        self, raw: Tree, valid: Tree = None, *, names: Sequence[str] = ("*",)
    ) -> tuple[Tree, dict[str, jax.Array]]:
        """What `predict` returns, and the intermediate values by dotted name, like blocks.0.attention.weights.

        names: only those that fit one of these patterns, like "blocks.*.output".

        Raises:
            ConfigError, DataError: as in `predict`.
        """
        inputs = self._inputs(raw)
        valid = self.task.valid_of(inputs) if valid is None else valid
        outputs, values = self._apply_and_collect(*self._variables, inputs, valid, names=tuple(names))
        return self.task.predictions_of(outputs), dict(values)

    def run_with_hooks(self, raw: Tree, hooks: NamedHooks, valid: Tree = None) -> Tree:
        """What `predict` returns where hooks read or replace intermediate values, {"blocks.0.attention.z": function}.

        A hook gets an array, and returns one of the same shape instead, or None. It is not compiled: it may print,
        store and look at values.

        Raises:
            ConfigError: a name that the model does not offer, a hook that returns another shape, or as in `predict`.
        """
        inputs = self._inputs(raw)
        valid = self.task.valid_of(inputs) if valid is None else valid
        inputs, valid = jax.tree.map(jax.numpy.asarray, (inputs, valid))
        outputs = self.model.run_with_hooks(*self._variables, inputs, hooks, valid=valid)
        return self.task.predictions_of(outputs)

    def with_hooks(self, hooks: NamedHooks) -> "Run":
        """This run with hooks in every forward pass, compiled: for its metrics, measures and predictions."""
        hooked = dataclasses.replace(self.experiment, network=self.model.with_hooks(hooks))
        return dataclasses.replace(self, experiment=hooked)

    @functools.cached_property
    def _apply(self):
        apply = self.model.apply
        return jax.jit(lambda params, model_state, inputs, valid: apply(params, model_state, inputs, valid=valid)[0])

    @functools.cached_property
    def _apply_and_collect(self):
        run = self.model.run_with_cache

        def collect(params: Tree, model_state: Tree, inputs: Tree, valid: Tree, names: tuple[str, ...]):
            outputs, values = run(params, model_state, inputs, valid=valid, names=names)
            return outputs, OrderedDict(values)  # in the order of the forward pass; a dict would be sorted by name

        return jax.jit(collect, static_argnames="names")

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The metrics of a split, with the program that training used."""
        placed = self.experiment.strategy.place(self._variables)
        return make_evaluate(self.experiment)(*placed, self.task.examples(split))

    @property
    def history(self) -> Any:
        """What training wrote to metrics.jsonl: step, split, name, value of each.

        A DataFrame where pandas is installed, else a list of dicts.
        """
        records = read_metrics(self.workdir / "metrics.jsonl")
        try:
            import pandas
        except ImportError:
            return records
        return pandas.DataFrame(records, columns=["step", "split", "name", "value"])

    def measure(
        self, names: Sequence[str] = (), *, split: str = "test", examples: int = 64, num_random_vectors: int = 128
    ) -> Values:
        """The named measures (`analysis.measures.MEASURES`; without names all that apply) on the first examples.

        Raises:
            MeasureError: an unknown measure, or one that does not apply to this model.
        """
        return measure(self.subject(split, examples), names, num_random_vectors=num_random_vectors)

    def subject(self, split: str = "test", examples: int = 64) -> Subject:
        """The model with the first examples of a split, for the functions of `analysis`."""
        batch = self.task.unpadded(first_examples(self.experiment, split, examples)[1])
        return Subject(self.config.model, self.task, self.model, self.params, self.state.model_state, batch)

    def generate(
        self, prompts: str | Sequence[str], length: int = 400, *, temperature: float = 1.0, seed: int = 0
    ) -> str | list[str]:
        """The continuation of each prompt by `length` symbols, as `generate.generate` draws them.

        Raises:
            ConfigError: the run is no next-token language model, a prompt is empty, or the temperature is negative.
        """
        from flaxformer_lab.generate import generate

        pieces = zip(*generate(self, prompts, length, temperature=temperature, seed=seed), strict=True)
        texts = ["".join(each) for each in pieces]
        return texts[0] if isinstance(prompts, str) else texts

    def export(self, path: str | Path, format: str = "stablehlo", **options: Any) -> "Exported":
        """Writes the model with its preprocessing as one file, and compares it with this run (docs/export.md).

        format: stablehlo, a program that plain JAX runs; onnx, a graph for onnxruntime; safetensors, the weights by
            name. options: `overwrite`, `examples`, `precision`, `calibrate`, as in `export.write.export`.

        Raises:
            ConfigError, RunError, DataError: as there.
        """
        from flaxformer_lab.export.write import export

        return export(self.experiment, self.state, path, format, **options)

    def _inputs(self, raw: Tree) -> Tree:
        inputs = self.task.inputs_of(raw)
        self._refuse_misfit(inputs)
        return inputs

    def _refuse_misfit(self, inputs: Tree) -> None:
        misfit = self.task.input_misfit(inputs)
        if misfit:
            raise ConfigError(f"predict: {misfit}")
        self.model.check_symbols(inputs)

    @property
    def _variables(self) -> tuple[Tree, Tree]:
        return self.state.params, self.state.model_state


def train(
    config: Config,
    workdir: str | Path,
    *,
    stop_at: int | None = None,
    quiet: bool = False,
    loggers: Sequence[str | Logger | Callback] = DEFAULT_LOGGERS,
    callbacks: Sequence[Logger | Callback] = (),
) -> Run:
    """Trains as `training.loop.train` does, from the last checkpoint in `workdir` on; returns the run.

    loggers, callbacks: as there. `callbacks=[lambda step, split, metrics: print(step, metrics)]` prints all values.

    Raises:
        ConfigError: the config cannot be run, or the folder belongs to another one; nothing has been written.
        RunError, NonFiniteError, Terminated: as in `training.loop.train`.
    """
    loop.train(config, workdir, stop_at=stop_at, quiet=quiet, loggers=loggers, callbacks=callbacks)
    return load_run(workdir)


def load_run(workdir: str | Path, step: int | str | None = None, changes: Mapping[str, Any] | None = None) -> Run:
    """The run in `workdir` at checkpoint `step` (default: the last one; "best": the lowest validation loss).

    changes: of keys that decide nothing (`folder.FREE_KEYS`), like {"training.evaluate_batch_size": 64}.

    Raises:
        ConfigError: a change of another key.
        RunError: the folder is missing, empty or damaged, or has no such checkpoint.
    """
    return Run(*restore_run(workdir, step, changes=changes), RunFolder(workdir).path)
