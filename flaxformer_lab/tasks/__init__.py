"""What is learned: data source, embedding, head, loss and metrics, selected by `config.task.name`."""

from collections.abc import Mapping
from typing import Any

from flaxformer_lab.config import TaskConfig
from flaxformer_lab.tasks.image_classification import ImageClassification
from flaxformer_lab.tasks.language_modelling import LanguageModelling
from flaxformer_lab.tasks.task import SPLITS, Task

TASKS: dict[str, type[Task]] = {
    "image_classification": ImageClassification,
    "language_modelling": LanguageModelling,
}


def make_task(config: TaskConfig, facts: Mapping[str, Any] | None = None) -> Task:
    """The task that `config.name` names; `facts` spares it the look at its data (see `Task.facts`)."""
    return TASKS[config.name](config, facts)


__all__ = ["SPLITS", "TASKS", "Task", "make_task"]
