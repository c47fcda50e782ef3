"""The compiled training program, several updates in one call, and the loop over its calls."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.state import Seed, State, Tree
from flaxformer_lab.training.step import make_train_step

History = Metrics  # the metrics of each update of a call: leaves have steps as their first axis


def run_steps_of(experiment: Experiment, examples: Examples) -> Callable[..., tuple[State, History]]:
    """Returns the pure `run_steps(seed, state, data, feed, count) -> (state, history)`.

    It applies `count` updates. Count and seed are arguments, so one program serves every call and every replica of a
    population, and the bits of a run do not depend on where it was interrupted.
    """
    config, resident = experiment.config, examples.lives_on_device(experiment.config.training.input)

    @jax.jit  # traced once, for the shapes of its metrics and for the loop alike
    def train_step(seed: Seed, state: State, batch: Tree) -> tuple[State, Metrics]:
        options = {"accumulate": config.training.accumulate, "axis_name": experiment.strategy.axis_name}
        options |= {"loss_chunk": config.training.loss_chunk}
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
        rows = config.training.steps_per_call
        history = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, update, (state, history))

    return run_steps


def make_run_steps(experiment: Experiment, examples: Examples) -> tuple[Callable[..., tuple[State, History]], Tree]:
    """Returns the compiled `run_steps(state, data, feed, count)` and the data that it wants on the device."""
    run_steps = functools.partial(run_steps_of(experiment, examples), np.uint32(experiment.config.seed))
    resident = examples.lives_on_device(experiment.config.training.input)
    compiled = experiment.strategy.compile(run_steps, donate=(0,), layout=experiment.layout)
    return compiled, examples.load() if resident else {}


def run_calls(
    run_steps: Callable[[State, Tree, Array], tuple[State, History]],
    state: State,
    schedule: list[tuple[int, int]],
    feeds: Iterable[Tree],
    place: Callable[[Any], Any],
) -> Iterator[tuple[int, int, State, History]]:
    """Yields (step, number of updates, state, history) of each call of `run_steps(state, feed, count)`.

    A call has only begun when it is yielded. The state that comes in is donated, as is each that is yielded once the
    next is asked for.
    """
    # Each of the few counts is placed once: placing synchronises the processes, which takes time.
    counts = {count: place(np.int32(count)) for count in sorted({count for _, count in schedule})}
    for (begin, count), feed in zip(schedule, feeds, strict=True):
        # Explicit placement only: an implicit copy between host and device would be a hidden cost of every step. The
        # guard holds for the thread, so it ends before the caller continues.
        with jax.transfer_guard("disallow"):
            state, history = run_steps(state, feed, counts[count])
        yield begin + count, count, state, history
