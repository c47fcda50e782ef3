"""Models that no gradient trains, as rows of an ablation: linear maps in closed form, trees, rules of thumb.

A control is a function `fit(task, seed, rate) -> Fit`, registered by name:

    @register("control", "linear", fits=("tabular_classification",), rates=(0.1, 1.0, 10.0), drawn=False)
    def linear(task: Task, seed: int, rate: float) -> Fit: ...

`rate` is the one number that an ablation searches on validation as it searches our learning rates, from the grid
`rates` on, which grows where the best one is at its edge: the shrinkage of trees, the inverse penalty of a linear map.
Where `drawn` is False no seed matters, and each rate is fitted once. A variant names a control beside overrides of the
task: `{"control": "linear", "task": {"scaling": "quantile"}}`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import metrics
from flaxformer_lab.parsing import nearest
from flaxformer_lab.tasks.task import Batch, Task

CHUNK = 4096  # examples that are evaluated at once


@dataclass(frozen=True)
class Fit:
    """What a control has learned.

    predict: from the prepared inputs of a batch, NumPy arrays, to what a network would give: logits, or numbers on the
    scale of the prepared targets. parameters: numbers that were fitted.
    """

    predict: Callable[[Any], Any]
    parameters: int = 0


Control = Callable[[Task, int, float], Fit]


def lookup(name: str, task_name: str) -> Control:
    """The control of that name.

    Raises:
        ConfigError: there is none, or it does not fit the task.
    """
    if name not in registry.names("control"):
        known = registry.names("control")
        raise ConfigError(f"control={name} is none: {nearest(name, known)}{registry.format_choices(known)}")
    fits = registry.ask("control", name, "fits")
    if fits is not None and task_name not in fits:
        raise ConfigError(f"control={name} does not fit task.name={task_name}, but {', '.join(fits)}")
    return registry.lookup("control", name).build


def batches(task: Task, split: str, size: int = CHUNK) -> Iterator[Batch]:
    """All examples of a split, prepared as in an evaluation, as NumPy arrays; the last batch may be smaller."""
    examples = task.examples(split)
    prepare = _preparation(task)
    for first in range(0, examples.number, size):
        rows = np.arange(first, min(first + size, examples.number), dtype=np.int32)
        stored = examples.read(examples.evaluation_indices(rows))
        stored |= {"example_weight": np.ones(len(rows), np.float32)}
        yield jax.tree.map(np.asarray, prepare(stored, rows))


def whole(task: Task, split: str) -> Batch:
    """All examples of a split as one batch: `inputs`, `targets`, `loss_weights`."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches(task, split))


def _preparation(task: Task) -> Callable[[Batch, Any], Batch]:
    def prepare(stored: Batch, rows: Int[Array, " batch"]) -> Batch:
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(rows)
        return task.prepare(stored, keys, training=False)

    return jax.jit(prepare)


def evaluate(task: Task, fit: Fit, split: str) -> dict[str, Any]:
    """The task's metrics of a split, exact over batches; and `examples`, where the primary metric is an average.

    `examples` [2, examples]: what each example adds to it, and its weight.
    """
    measured, states = _measured(task), []
    for batch in batches(task, split):
        outputs = jax.tree.map(jnp.asarray, fit.predict(batch["inputs"]))
        states.append(jax.device_get(measured(outputs, {k: v for k, v in batch.items() if k != "inputs"})))
    return metrics.compute(states)


def _measured(task: Task) -> Callable[[Any, Batch], metrics.Metrics]:
    def measure(outputs: Any, batch: Batch) -> metrics.Metrics:
        figures, primary = task.loss_and_metrics(outputs, batch), task.primary_metric.name
        if not isinstance(figures[primary], metrics.Average):
            return figures
        average = lambda pair: task.loss_and_metrics(*pair)[primary]  # noqa: E731
        return figures | {"examples": metrics.PerExample.of(average, (outputs, batch))}

    return jax.jit(measure)


def best_on_validation(task: Task, fits: Iterator[Fit] | list[Fit]) -> Fit:
    """The fit whose primary metric is best on validation; of equals the first."""
    metric = task.primary_metric
    sign = 1 if metric.higher_is_better else -1
    return max(fits, key=lambda fit: sign * evaluate(task, fit, "validation")[metric.name])
