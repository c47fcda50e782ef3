"""What is learned: data source, embedding, head, loss and metrics, selected by `config.task.name`."""

from collections.abc import Mapping
from typing import Any

from flaxformer_lab.task_config import TaskConfig
from flaxformer_lab.tasks import probes, synthetic
from flaxformer_lab.tasks.classification import ImageClassification, TabularClassification
from flaxformer_lab.tasks.language_modelling import LanguageModelling
from flaxformer_lab.tasks.task import SPLITS, Bound, Task

TASKS: dict[str, type[Task]] = {
    "image_classification": ImageClassification,
    "tabular_classification": TabularClassification,
    "language_modelling": LanguageModelling,
    "product": probes.Product,
    "rotation": probes.Rotation,
    "pointers": probes.Pointers,
    "nearest": probes.Nearest,
    "scaled_linear": probes.ScaledLinear,
    "planted_interactions": probes.PlantedInteractions,
    "delay": probes.Delay,
    "marked_token": probes.MarkedToken,
    "associative_recall": synthetic.AssociativeRecall,
    "in_context_recall": synthetic.InContextRecall,
    "fuzzy_recall": synthetic.FuzzyRecall,
    "noisy_recall": synthetic.NoisyRecall,
    "selective_copy": synthetic.SelectiveCopy,
    "compression": synthetic.Compression,
    "memorization": synthetic.Memorization,
}


def make_task(config: TaskConfig, metadata: Mapping[str, Any] | None = None) -> Task:
    """The task that `config.name` names; `metadata` spares it the look at its data (see `Task.metadata`)."""
    return TASKS[config.name](config, metadata)


__all__ = ["SPLITS", "TASKS", "Bound", "Task", "make_task"]
