"""What is learned: data source, embedding, head, loss and metrics, selected by `config.task.name`."""

from collections.abc import Mapping
from typing import Any

from flaxformer_lab import registry
from flaxformer_lab.task_config import TaskConfig
from flaxformer_lab.tasks import classification, tables  # noqa: F401  the lab's own, in the order of the docs

# isort: split
from flaxformer_lab.tasks import (  # noqa: F401
    baskets,
    clicks,
    detection,
    forecasting,
    language_modelling,
    marks,
    planted_crosses,
    probes,
    synthetic,
)
from flaxformer_lab.tasks.task import SPLITS, Bound, PrimaryMetric, Task


def make_task(config: TaskConfig, metadata: Mapping[str, Any] | None = None) -> Task:
    """The task that `config.name` names; with `metadata` it need not read its data (see `Task.metadata`)."""
    return registry.lookup("task", config.name).build(config, metadata)


def primary_metric(config: TaskConfig) -> PrimaryMetric:
    """The metric that the task which `config.name` names is judged by; reads no data."""
    return registry.lookup("task", config.name).build.primary_metric


__all__ = ["SPLITS", "Bound", "PrimaryMetric", "Task", "make_task", "primary_metric"]
