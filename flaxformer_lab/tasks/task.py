"""What every task is: examples, a network for them, and figures to judge it by."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Key

from flaxformer_lab.functional.losses import WeightedSum
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.tasks.examples import Examples

Batch = dict[str, Array]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Bound:
    """A score that theory gives: what no training can exceed, and why. `metric` is one of the task's figures.

    assumes: what the theorem needs beside the config, where no knob can promise it; empty for an exact bound.
    """

    metric: str
    value: float
    reason: str
    assumes: str = ""


class Task(abc.ABC):
    """One thing to learn.

    `metadata` are what the network must know of the data (sizes, symbols): plain JSON values, kept in the run's folder,
    so that a checkpoint can be used where the data is not.
    """

    metadata: Mapping[str, Any]
    units: tuple[str, int]  # what throughput counts, and how many of them an example has: ("tokens", 128)

    @abc.abstractmethod
    def examples(self, split: str) -> Examples:
        """The examples of train, validation or test."""

    @abc.abstractmethod
    def network(self, config: ModelConfig) -> PureNetwork:
        """The pure network that fits this task's inputs and outputs."""

    @abc.abstractmethod
    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        """Examples as they are stored become `inputs`, `targets` and `weights` (one a target). Pure, on the device."""

    @abc.abstractmethod
    def loss_and_metrics(self, logits: Array, batch: Batch) -> dict[str, WeightedSum]:
        """`loss`, and other figures, as (weighted sum, weight) pairs."""

    def bound(self, config: ModelConfig) -> Bound | None:
        """What theory says that no model of this config can exceed; None where it says nothing."""
        del config
        return None

    @abc.abstractmethod
    def dummy(self, batch_size: int) -> jax.ShapeDtypeStruct:
        """Shape and type of the network's inputs for `batch_size` examples, to count its operations without data."""
