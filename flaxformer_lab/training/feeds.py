"""What each compiled call trains on, and what an evaluation sees: a function of the config, the seed and the step."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flaxformer_lab.config import Config
from flaxformer_lab.data.order import evaluation_batches
from flaxformer_lab.data.prefetch import prefetch
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.training.experiment import Experiment

Tree = Any  # a pytree of arrays
ALL = slice(None)


def check_batch_size(config: Config, examples: Examples) -> None:
    """Raises ConfigError where one update asks for more examples than training has; examples: of that split."""
    size = config.training.batch_size
    if size > examples.number and not examples.endless:
        raise ConfigError(
            f"training.batch_size={size} is more than the {examples.number:,} training examples of {config.task.name}; "
            f"choose at most {examples.number}"
        )


def call_schedule(config: Config, start: int, last: int) -> list[tuple[int, int]]:
    """(first step, number of updates) of each compiled call; none reaches past an evaluation or a checkpoint."""
    training, schedule = config.training, []
    while start < last:
        ends = ((start // every + 1) * every for every in (training.evaluate_every, training.checkpoint_every))
        end = min(start + training.steps_per_call, last, *ends)
        schedule.append((start, end - start))
        start = end
    return schedule


def should_run(step: int, last: int, *intervals: int) -> bool:
    """Whether something that happens at each of the intervals, and at the end, happens after this step."""
    return step == last or any(step % every == 0 for every in intervals)


def host_feed(
    config: Config, examples: Examples, seed: int, begin: int, count: int, local_rows: slice | np.ndarray = ALL
) -> Tree:
    """What one call trains on, [steps_per_call, batch, ...]: numbers of resident examples, or the examples themselves.

    A short call repeats its last batch in the steps that it will not reach. local_rows: the rows of each batch that are
    wanted; no others are read.
    """
    size = config.training.batch_size
    steps = [min(step, begin + count - 1) for step in range(begin, begin + config.training.steps_per_call)]
    indices = np.stack([examples.training_indices(seed, step, size)[local_rows] for step in steps])
    if examples.lives_on_device(config.training.input):
        stored = {"example": indices}
    else:
        stored = stack_trees([examples.read(each) for each in indices])
    return stored | {
        "row": np.broadcast_to(np.arange(size, dtype=np.int32)[local_rows], indices.shape),
        "example_weight": np.ones(indices.shape, np.float32),
    }


def make_feeds(experiment: Experiment, examples: Examples, schedule: list[tuple[int, int]]) -> Iterator[Tree]:
    """For each call of the schedule, what it trains on, where the strategy wants it."""
    config, strategy = experiment.config, experiment.strategy
    local_rows = strategy.process_local_rows(config.training.batch_size)

    def feed(number: int) -> Tree:
        return strategy.split(host_feed(config, examples, config.seed, *schedule[number], local_rows), batch_axis=1)

    return prefetch(feed, 0, len(schedule))


def host_evaluation(config: Config, examples: Examples, local_rows: slice | np.ndarray = ALL) -> Iterator[Tree]:
    """The batches of a whole split, in the order of the data; local_rows: the rows of each that are wanted."""
    size = config.training.evaluate_batch_size
    stream = examples.load() if examples.lives_on_device() else None
    all_indices, all_weights = evaluation_batches(examples.number, size)
    for number, (indices, weight) in enumerate(zip(all_indices, all_weights, strict=True)):
        indices = examples.evaluation_indices(indices[local_rows])
        batch = examples.read(indices) if stream is None else examples.take(stream, indices)
        rows = (number * size + np.arange(size)).astype(np.int32)[local_rows]
        yield batch | {"row": rows, "example_weight": weight[local_rows]}


def stack_trees(trees: list[Tree]) -> Tree:
    """Trees of the same structure as one, with a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
