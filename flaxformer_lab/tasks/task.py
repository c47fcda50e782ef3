"""What every task is: examples, a network for them, a loss and metrics."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxformer_lab.data.own.contents import SPLITS as SPLITS  # part of the contract
from flaxformer_lab.functional.losses import accuracy, cross_entropy
from flaxformer_lab.functional.metrics import Average, Metrics, PerExample
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.modules.lazy_logits import LazyLogits
from flaxformer_lab.tasks.examples import Examples

Batch = dict[str, Any]  # pytrees of arrays whose first axis is the batch
Keys = Key[Array, " batch"] | None  # None where a task draws nothing
EXAMPLES = "examples"  # among the metrics of a split: what each example adds to the primary one


def examples_of(metric: str) -> str:
    """Among the metrics of a split: what each example adds to one that stands beside the primary metric."""
    return f"{EXAMPLES} of {metric}"


@dataclass(frozen=True)
class Bound:
    """A score that theory gives: what no training can exceed, and why. `metric` is one of the task's figures.

    assumes: a condition of the theorem that no knob can guarantee; empty for an exact bound.
    """

    metric: str
    value: float
    reason: str
    assumes: str = ""


@dataclass(frozen=True)
class PrimaryMetric:
    """The metric that a task is judged by: one of those that it computes.

    label: its name in print. limits: the lowest and the highest value, None where there is no such limit. digits: after
    the decimal point, in print. beside: other metrics whose test values stand beside it in an ablation's reports.
    """

    name: str
    label: str
    higher_is_better: bool
    limits: tuple[int | float | None, int | float | None] = (None, None)
    digits: int = 3
    beside: tuple[str, ...] = ()


LOSS = PrimaryMetric("loss", "loss", higher_is_better=False)
ACCURACY = PrimaryMetric("accuracy", "accuracy", higher_is_better=True, limits=(0.0, 1.0))
AUC = PrimaryMetric("auc", "AUC", higher_is_better=True, limits=(0.0, 1.0))
R_SQUARED = PrimaryMetric("r2", "R²", higher_is_better=True, limits=(None, 1.0))


class Task(abc.ABC):
    """One thing to learn.

    `metadata` are what the network must know of the data (sizes, symbols): plain JSON values, kept in the run's folder,
    so that a checkpoint can be used where the data is not.
    """

    metadata: Mapping[str, Any]
    primary_metric: PrimaryMetric = LOSS
    units: tuple[str, int]  # what throughput counts, and how many of them an example has: ("tokens", 128)
    takes_lazy_logits: bool = False  # `loss_and_metrics` does, in place of logits
    overlap: int = 1  # so many examples in a row share data: in intervals over examples they count as one

    @classmethod
    def primary_metric_of(cls, config: Any) -> PrimaryMetric:
        """The primary metric of a task with this config."""
        del config
        return cls.primary_metric

    @abc.abstractmethod
    def examples(self, split: str) -> Examples:
        """The examples of train, validation or test."""

    @abc.abstractmethod
    def network(self, config: ModelConfig) -> PureNetwork:
        """The pure network that fits this task's inputs and outputs."""

    @abc.abstractmethod
    def prepare(self, examples: Batch, keys: Keys, *, training: bool) -> Batch:
        """Stored examples become `inputs` (a pytree that the network's embedding takes) and what the loss needs.

        `valid`, if there is one, goes to the network: [batch, tokens], False for padding; a pytree of such where the
        body takes several sequences. Pure, on the device. keys: None where nothing is drawn.
        """

    @abc.abstractmethod
    def loss_and_metrics(self, outputs: Any, batch: Batch) -> Metrics:
        """`loss`, an `Average`, and other metrics, from the network's outputs and the prepared batch."""

    def metrics_and_examples(self, outputs: Any, batch: Batch) -> Metrics:
        """As `loss_and_metrics`, and what each example adds to those that are an `Average`.

        EXAMPLES: to the primary metric; `examples_of(name)`: to one beside it.
        """
        figures, primary = self.loss_and_metrics(outputs, batch), self.primary_metric
        keys = {primary.name: EXAMPLES} | {name: examples_of(name) for name in primary.beside}
        return figures | {
            key: PerExample.of(lambda pair, name=name: self.loss_and_metrics(*pair)[name], (outputs, batch))
            for name, key in keys.items()
            if isinstance(figures.get(name), Average)  # others are computed of what is gathered
        }

    def facts(self) -> list[list[Any]]:
        """What a user should check of the data before a run, (what, value) in words."""
        return []

    def inputs_of(self, raw: Any) -> Any:
        """The network's inputs from examples as the data set has them, preprocessed as in an evaluation.

        Raises:
            ConfigError: they are not of the kind that the model was trained on.
            DataError: a value that cannot be used.
        """
        return raw

    def raw_spec(self, batch_size: int) -> dict[str, Any] | None:
        """Shapes and types of the stored features that `preprocess` takes, `jax.ShapeDtypeStruct` by name.

        None where only the network's inputs can be given: texts are no arrays, and a probe's examples are drawn.
        """
        del batch_size
        return None

    def preprocess(self, features: Batch) -> Any:
        """The network's inputs from the features of `raw_spec`, as in an evaluation.

        Pure, on the device, for a batch of any size; that size may be symbolic.
        """
        raise NotImplementedError(f"{type(self).__name__} has a raw_spec and no preprocess")

    def valid_of(self, inputs: Any) -> Any:
        """Which tokens of the inputs are not padding, where the inputs themselves say so; None: all of them."""
        del inputs
        return None

    def unpadded(self, batch: Batch) -> Batch:
        """A prepared batch as the measures take it, who would take padding for tokens."""
        return batch

    @property
    def context(self) -> int | None:
        """The most symbols that a next one is predicted from; None where none is."""
        return None

    def class_names(self) -> list[str] | None:
        """What each output stands for; None where they are no classes, or have no names."""
        return None

    def predictions_of(self, outputs: Any) -> Any:
        """The network's outputs in the units of the data; as they are where they have none."""
        return outputs

    def outputs_of(self, predictions: Any) -> Any:
        """The network's outputs, from which the metrics are, of predictions: undoes `predictions_of`."""
        return predictions

    def bound(self, config: ModelConfig) -> Bound | None:
        """What theory says that no model of this config can exceed; None where it says nothing."""
        del config
        return None

    def solution(self, config: ModelConfig, penalty: float) -> dict[str, np.ndarray]:
        """All parameters, by dotted name, that make the least sum of squared errors + penalty x squared weights.

        Raises:
            ConfigError: no closed form is known.
        """
        del config, penalty
        raise ConfigError(
            f"optimizer.name=ridge with {type(self).__name__}, for which no closed form is known; choose adamw"
        )

    @abc.abstractmethod
    def input_spec(self, batch_size: int) -> Any:
        """Shapes and types of `inputs` for `batch_size` examples: a pytree of `jax.ShapeDtypeStruct`."""

    def input_misfit(self, inputs: Any) -> str | None:
        """Why the network cannot take these inputs: another structure, shape or kind than `input_spec`; None if it can.

        The first axis, the batch, may have any size.
        """
        spec = self.input_spec(1)
        if jax.tree.structure(inputs) != jax.tree.structure(spec):
            return (
                f"inputs of structure {jax.tree.structure(inputs)} are not the {jax.tree.structure(spec)} of this task"
            )
        for given, wanted in zip(jax.tree.leaves(inputs), jax.tree.leaves(spec), strict=True):
            kinds = [_NUMBERS[bool(jnp.issubdtype(each.dtype, jnp.floating))] for each in (given, wanted)]
            if tuple(given.shape[1:]) != tuple(wanted.shape[1:]) or kinds[0] != kinds[1]:
                return (
                    f"inputs of shape {tuple(given.shape)} ({kinds[0]}) do not fit this model, which takes "
                    f"(batch, {', '.join(map(str, wanted.shape[1:]))}) ({kinds[1]})"
                )
        return None


def loss_and_accuracy(logits: Float[Array, "batch *tokens classes"] | LazyLogits, batch: Batch) -> Metrics:
    """Cross-entropy in nats, and the share of the largest logits that are the target's; each weighs `loss_weights`."""
    if isinstance(logits, LazyLogits):
        loss, correct = logits.loss_and_accuracy(batch["targets"], batch["loss_weights"])
        return {"loss": loss, "accuracy": correct}
    arguments = (logits, batch["targets"], batch["loss_weights"])
    return {"loss": cross_entropy(*arguments), "accuracy": accuracy(*arguments)}


_NUMBERS = {True: "numbers", False: "symbols"}
