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
from flaxformer_lab.training.state import State, Tree, initial_state
from flaxformer_lab.training.step import make_evaluation_step, make_train_step

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


def make_experiment(
    config: Config, facts: dict[str, Any] | None = None, strategy: Strategy | None = None
) -> Experiment:
    """Returns the experiment that a config describes; `facts` as in `Task.facts`; `strategy` if not the config's."""
    strategy = strategy or make_strategy(config)
    task = make_task(config.task, facts)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    return Experiment(config, task, task.network(config.model), optimizer, strategy)


def make_run_steps(experiment: Experiment, examples: Examples) -> tuple[Callable[..., tuple[State, History]], Tree]:
    """Returns `run_steps(state, data, feed, count) -> (state, metrics)` and the data that it wants on the device.

    It applies `count` updates inside one compiled call. The number is an argument and not a part of the program, so
    that one program serves every call, and the bits of a run do not depend on where it was interrupted.
    """
    config, strategy = experiment.config, experiment.strategy
    train_step = make_train_step(
        experiment.task,
        experiment.network,
        experiment.optimizer,
        seed=config.seed,
        accumulate=config.training.accumulate,
        axis_name=strategy.axis_name,
    )
    train_step = jax.jit(train_step)  # traced once, for the shapes of its metrics and for the loop alike
    resident = _lives_on_device(config, examples)

    def run_steps(state: State, data: Tree, feed: Tree, count: Int[Array, ""]) -> tuple[State, History]:
        def batch_of(number: Int[Array, ""] | int) -> Tree:
            batch = jax.tree.map(lambda leaf: leaf[number], feed)
            return examples.take(data, batch.pop("example")) | batch if resident else batch

        def update(number: Int[Array, ""], carry: tuple[State, History]) -> tuple[State, History]:
            state, history = carry
            state, metrics = train_step(state, batch_of(number))
            return state, jax.tree.map(lambda all_steps, one: all_steps.at[number].set(one), history, metrics)

        shapes = jax.eval_shape(lambda state: train_step(state, batch_of(0))[1], state)
        history = jax.tree.map(lambda leaf: jnp.zeros((config.training.steps_per_call,), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, update, (state, history))

    return strategy.compile(run_steps, donate=(0,)), examples.load() if resident else {}


def make_feeds(experiment: Experiment, examples: Examples, plan: list[tuple[int, int]]) -> Iterator[Tree]:
    """For each call of the plan, what it trains on: row numbers of resident data, or the examples themselves."""
    config, strategy = experiment.config, experiment.strategy
    size, calls = config.training.batch_size, config.training.steps_per_call
    resident = _lives_on_device(config, examples)

    def feed(number: int) -> Tree:
        begin, count = plan[number]
        # A short call repeats its last batch in the rows that it will not reach.
        steps = [min(step, begin + count - 1) for step in range(begin, begin + calls)]
        rows = np.stack([examples.training_rows(config.seed, step, size) for step in steps])
        stored = {"example": rows} if resident else _stacked([examples.read(each) for each in rows])
        extra = {
            "row": np.broadcast_to(np.arange(size, dtype=np.int32), rows.shape),
            "weight": np.ones(rows.shape, np.float32),
        }
        return strategy.split(stored | extra, batch_axis=1)

    return prefetch(feed, 0, len(plan))


def make_evaluate(experiment: Experiment) -> Callable[[Tree, Tree, Examples], Values]:
    """Returns `evaluate(params, model_state, examples)`: the metrics of a whole split, from placed parameters."""
    config, strategy = experiment.config, experiment.strategy
    size = config.training.evaluate_batch_size
    evaluation_step = strategy.compile(
        make_evaluation_step(experiment.task, experiment.network, seed=config.seed, axis_name=strategy.axis_name)
    )

    def evaluate(params: Tree, model_state: Tree, examples: Examples) -> Values:
        all_indices, all_weights = evaluation_batches(examples.number, size)
        stream = examples.load() if examples.num_bytes <= DEVICE_BYTES else None
        batches = []
        for number, (indices, weight) in enumerate(zip(all_indices, all_weights, strict=True)):
            rows = examples.evaluation_rows(indices)
            batch = examples.read(rows) if stream is None else examples.take(stream, rows)
            batch |= {"row": (number * size + np.arange(size)).astype(np.int32), "weight": weight}
            batches.append(evaluation_step(params, model_state, strategy.split(batch, batch_axis=0)))
        fetched = strategy.fetch(batches)
        # fsum adds exactly, so the figure does not depend on the order of the batches.
        sums = {
            name: tuple(math.fsum(float(batch[name][part]) for batch in fetched) for part in (0, 1))
            for name in fetched[0]
        }
        return {name: total / weight for name, (total, weight) in sums.items()}

    return evaluate


def _stacked(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _lives_on_device(config: Config, examples: Examples) -> bool:
    wanted = config.training.input
    return wanted == "device" or (wanted == "auto" and examples.num_bytes <= DEVICE_BYTES)
