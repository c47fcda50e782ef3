"""The compiled programs of an experiment, and what feeds them: several updates in one call, one evaluation batch."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from flaxformer_lab.config import Config
from flaxformer_lab.data.order import evaluation_batches
from flaxformer_lab.data.prefetch import prefetch
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.tasks import Task, make_task
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.training.optimizer import make_optimizer
from flaxformer_lab.training.parallelism import Strategy, make_strategy
from flaxformer_lab.training.state import Seed, State, Tree, initial_state
from flaxformer_lab.training.step import Metrics, make_evaluation_step, make_train_step

ALL = slice(None)
DEVICE_BYTES = 2**30  # a training set up to this size lives on the device
Values = dict[str, float]
History = dict[str, tuple[Float[Array, " steps"], Float[Array, " steps"]]]  # the metrics of each update of a call


@dataclass(frozen=True)
class Experiment:
    """A config made ready to run: nothing here depends on the step, and nothing has been written."""

    config: Config
    task: Task
    network: PureNetwork
    optimizer: optax.GradientTransformation
    strategy: Strategy

    @functools.cached_property
    def abstract_state(self) -> State:
        """Shapes and types of the state."""
        return jax.eval_shape(lambda: initial_state(self.network, self.optimizer, self.config.seed))

    @functools.cached_property
    def layout(self) -> State | None:
        """Where the leaves of the state lie; None where every device holds all of it."""
        return self.strategy.layout(self.abstract_state, self.network.axes)


def make_experiment(
    config: Config, metadata: dict[str, Any] | None = None, strategy: Strategy | None = None
) -> Experiment:
    """The experiment that a config describes. metadata: as in `Task`; strategy: if it is not the config's."""
    strategy = strategy or make_strategy(config)
    task = make_task(config.task, metadata)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    network = task.network(config.model)
    strategy.check(network, task.dummy(1))
    return Experiment(config, task, network, optimizer, strategy)


def run_steps_of(experiment: Experiment, examples: Examples) -> Callable[..., tuple[State, History]]:
    """Returns the pure `run_steps(seed, state, data, feed, count) -> (state, metrics)`.

    It applies `count` updates. Neither number nor seed is a part of the program, so that one program serves every call,
    and every replica of a population; and the bits of a run do not depend on where it was interrupted.
    """
    config, resident = experiment.config, lives_on_device(experiment.config, examples)

    @jax.jit  # traced once, for the shapes of its metrics and for the loop alike
    def train_step(seed: Seed, state: State, batch: Tree) -> tuple[State, Metrics]:
        options = {"accumulate": config.training.accumulate, "axis_name": experiment.strategy.axis_name}
        step = make_train_step(experiment.task, experiment.network, experiment.optimizer, seed=seed, **options)
        return step(state, batch)

    def run_steps(seed: Seed, state: State, data: Tree, feed: Tree, count: Int[Array, ""]):
        def batch_of(number: Int[Array, ""] | int) -> Tree:
            batch = jax.tree.map(lambda leaf: leaf[number], feed)
            return examples.take(data, batch.pop("example")) | batch if resident else batch

        def update(number: Int[Array, ""], carry: tuple[State, History]) -> tuple[State, History]:
            state, history = carry
            state, metrics = train_step(seed, state, batch_of(number))
            return state, jax.tree.map(lambda all_steps, one: all_steps.at[number].set(one), history, metrics)

        shapes = jax.eval_shape(lambda state: train_step(seed, state, batch_of(0))[1], state)
        history = jax.tree.map(lambda leaf: jnp.zeros((config.training.steps_per_call,), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, update, (state, history))

    return run_steps


def make_run_steps(experiment: Experiment, examples: Examples) -> tuple[Callable[..., tuple[State, History]], Tree]:
    """Returns the compiled `run_steps(state, data, feed, count)` and the data that it wants on the device."""
    run_steps = functools.partial(run_steps_of(experiment, examples), np.uint32(experiment.config.seed))
    resident = lives_on_device(experiment.config, examples)
    compiled = experiment.strategy.compile(run_steps, donate=(0,), layout=experiment.layout)
    return compiled, examples.load() if resident else {}


def call_schedule(config: Config, start: int, last: int) -> Iterator[tuple[int, int]]:
    """(first step, number of updates) of each compiled call; none reaches past an evaluation or a checkpoint."""
    training = config.training
    while start < last:
        ends = (_next(start, every) for every in (training.evaluate_every, training.checkpoint_every))
        end = min(start + training.steps_per_call, last, *ends)
        yield start, end - start
        start = end


def should_run(step: int, last: int, *intervals: int) -> bool:
    """Whether something that happens at each of the intervals, and at the end, happens after this step."""
    return step == last or any(step % every == 0 for every in intervals)


def host_feed(
    config: Config, examples: Examples, seed: int, begin: int, count: int, process_local_rows: slice | np.ndarray = ALL
) -> Tree:
    """What one call trains on, [steps_per_call, batch, ...]: row numbers of resident data, or the examples themselves.

    A short call repeats its last batch in the rows that it will not reach. process_local_rows: the rows of each batch
    that are wanted; no others are read.
    """
    size = config.training.batch_size
    steps = [min(step, begin + count - 1) for step in range(begin, begin + config.training.steps_per_call)]
    rows = np.stack([examples.training_indices(seed, step, size)[process_local_rows] for step in steps])
    resident = lives_on_device(config, examples)
    stored = {"example": rows} if resident else stack_trees([examples.read(each) for each in rows])
    return stored | {
        "row": np.broadcast_to(np.arange(size, dtype=np.int32)[process_local_rows], rows.shape),
        "weight": np.ones(rows.shape, np.float32),
    }


def make_feeds(experiment: Experiment, examples: Examples, plan: list[tuple[int, int]]) -> Iterator[Tree]:
    """For each call of the plan, what it trains on, where the strategy wants it."""
    config, strategy = experiment.config, experiment.strategy
    process_local_rows = strategy.process_local_rows(config.training.batch_size)

    def feed(number: int) -> Tree:
        return strategy.split(host_feed(config, examples, config.seed, *plan[number], process_local_rows), batch_axis=1)

    return prefetch(feed, 0, len(plan))


def host_evaluation(config: Config, examples: Examples, process_local_rows: slice | np.ndarray = ALL) -> Iterator[Tree]:
    """The batches of a whole split, in the order of the data; process_local_rows: the rows of each that are wanted."""
    size = config.training.evaluate_batch_size
    stream = examples.load() if examples.num_bytes <= DEVICE_BYTES else None
    all_indices, all_weights = evaluation_batches(examples.number, size)
    for number, (indices, weight) in enumerate(zip(all_indices, all_weights, strict=True)):
        rows = examples.evaluation_indices(indices[process_local_rows])
        batch = examples.read(rows) if stream is None else examples.take(stream, rows)
        yield batch | {
            "row": (number * size + np.arange(size)).astype(np.int32)[process_local_rows],
            "weight": weight[process_local_rows],
        }


def make_evaluate(experiment: Experiment) -> Callable[[Tree, Tree, Examples], Values]:
    """Returns `evaluate(params, model_state, examples)`: the metrics of a whole split, from placed parameters."""
    config, strategy = experiment.config, experiment.strategy
    evaluation_step = strategy.compile(
        make_evaluation_step(experiment.task, experiment.network, seed=config.seed, axis_name=strategy.axis_name)
    )

    process_local_rows = strategy.process_local_rows(config.training.evaluate_batch_size)

    def evaluate(params: Tree, model_state: Tree, examples: Examples) -> Values:
        batches = [
            evaluation_step(params, model_state, strategy.split(batch, batch_axis=0))
            for batch in host_evaluation(config, examples, process_local_rows)
        ]
        return averages(strategy.fetch(batches))

    return evaluate


def averages(batches: list[dict[str, tuple[Any, Any]]]) -> Values:
    """Each metric's sum over its weight, over all batches; fsum adds exactly, so their order does not matter."""
    sums = {
        name: tuple(math.fsum(float(batch[name][part]) for batch in batches) for part in (0, 1)) for name in batches[0]
    }
    return {name: total / weight for name, (total, weight) in sums.items()}


def stack_trees(trees: list[Tree]) -> Tree:
    """Trees of the same structure as one, with a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def lives_on_device(config: Config, examples: Examples) -> bool:
    """Whether the training set is on the device as a whole."""
    wanted = config.training.input
    return wanted == "device" or (wanted == "auto" and examples.num_bytes <= DEVICE_BYTES)


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every
