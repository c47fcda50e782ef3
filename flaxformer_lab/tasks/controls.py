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
    scale of the prepared targets. parameters: numbers that were fitted. on_validation: takes the place of predict on
    the validation split, where predict has seen its targets, as of a control that needs no training.
    """

    predict: Callable[[Any], Any]
    parameters: int = 0
    on_validation: Callable[[Any], Any] | None = None


Control = Callable[[Task, int, float], Fit]


def lookup(name: str, task_name: str) -> Control:
    """The control of that name.

    Raises:
        ConfigError: there is none, or it does not fit the task.
    """
    if name not in registry.names("control"):
        known = registry.names("control")
        raise ConfigError(f"control={name} is no control: {nearest(name, known)}{registry.format_choices(known)}")
    fits = registry.ask("control", name, "fits")
    if fits is not None and task_name not in fits:
        raise ConfigError(f"control={name} does not fit task.name={task_name}, but {', '.join(fits)}")
    return registry.lookup("control", name).build


def batches(task: Task, split: str, size: int = CHUNK) -> Iterator[Batch]:
    """All examples of a split, prepared as in an evaluation, as NumPy arrays; the last batch may be smaller."""
    examples, key = task.examples(split), jax.random.key(0)
    for first in range(0, examples.number, size):
        rows = np.arange(first, min(first + size, examples.number), dtype=np.int32)
        stored = examples.read(examples.evaluation_indices(rows))
        stored |= {"example_weight": np.ones(len(rows), np.float32), "row": rows}
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
        yield jax.tree.map(np.asarray, task.prepare(jax.tree.map(jnp.asarray, stored), keys, training=False))


def whole(task: Task, split: str) -> Batch:
    """All examples of a split as one batch: `inputs`, `targets`, `loss_weights`."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches(task, split))


def evaluate(task: Task, fit: Fit, split: str) -> dict[str, Any]:
    """The task's metrics of a split, exact over batches; and `examples`, where the primary metric is an average.

    `examples` [2, examples]: what each example adds to it, and its weight.
    """
    predict = (fit.on_validation if split == "validation" else None) or fit.predict
    states, measure = [], jax.jit(task.metrics_and_examples)
    for batch in batches(task, split):
        outputs = jax.tree.map(jnp.asarray, predict(batch["inputs"]))
        batch = {name: jax.tree.map(jnp.asarray, value) for name, value in batch.items() if name != "inputs"}
        states.append(jax.device_get(measure(outputs, batch)))
    return metrics.compute(states)
