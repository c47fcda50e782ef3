"""Training from a config to a checkpoint and its test figure."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from flaxformer_lab.config import Config
from flaxformer_lab.data.order import evaluation_batches
from flaxformer_lab.data.prefetch import prefetch
from flaxformer_lab.errors import NonFiniteError
from flaxformer_lab.models.cost import forward_flops, parameters, parameters_by_part
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.tasks import Task, make_task
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.logging import Display, MetricsLog
from flaxformer_lab.training.optimizer import make_optimizer, make_schedule
from flaxformer_lab.training.parallelism import Strategy, make_strategy
from flaxformer_lab.training.state import State, Tree, initial_state
from flaxformer_lab.training.step import Metrics, make_evaluation_step, make_train_step

DEVICE_BYTES = 2**30  # a training set up to this size lives on the device
Values = dict[str, float]


@dataclass(frozen=True)
class Experiment:
    """A config made ready to run: nothing here depends on the step, and nothing has been written."""

    config: Config
    task: Task
    network: PureNetwork
    optimizer: optax.GradientTransformation
    strategy: Strategy

    @property
    def abstract_state(self) -> State:
        """Shapes and types of the state."""
        return jax.eval_shape(lambda: initial_state(self.network, self.optimizer, self.config.seed))


def make_experiment(config: Config, facts: dict[str, Any] | None = None) -> Experiment:
    """Returns the experiment that a config describes; `facts` as in `Task.facts`."""
    strategy = make_strategy(config)
    task = make_task(config.task, facts)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    return Experiment(config, task, task.network(config.model), optimizer, strategy)


def train(config: Config, workdir: str | Path, *, stop_at: int | None = None, quiet: bool = False) -> Values:
    """Trains to `config.training.steps`, or to `stop_at`, from the last checkpoint in `workdir` if there is one.

    Returns the test metrics of the last step (the validation metrics when stopped early).

    Raises:
        ConfigError: the config cannot be run, or the folder belongs to another one; nothing has been written.
        RunError: the folder cannot be read or written.
        NonFiniteError: the loss or the gradient stopped being finite; the last good checkpoint stays.
    """
    experiment = make_experiment(config)
    train_examples, validation_examples = (experiment.task.examples(split) for split in ("train", "validation"))
    folder = RunFolder(workdir)
    folder.claim(config, dict(experiment.task.facts))
    display = Display(
        steps=config.training.steps,
        units=experiment.task.units,
        batch_size=config.training.batch_size,
        quiet=quiet,
    )
    show_cost(experiment, display)
    strategy, training = experiment.strategy, config.training
    last = min(training.steps, stop_at or training.steps)
    with Checkpoints(folder.checkpoints, keep_last=training.keep_last, keep_best=training.keep_best) as checkpoints:
        if checkpoints.steps:
            state = checkpoints.restore(experiment.abstract_state)
            display.say(f"resumed from the checkpoint of step {int(state.step)} in {folder.path}")
        else:
            state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, config.seed))()
        start = int(state.step)
        log = MetricsLog(folder.metrics, folder.tensorboard, resumed_step=start)
        evaluate = make_evaluate(experiment)
        run_steps, data = make_run_steps(experiment, train_examples)
        schedule = make_schedule(config.optimizer, training.steps)
        learning_rates = jax.device_get(jax.vmap(schedule)(jnp.arange(training.steps)))
        state, data = strategy.place(state), strategy.place(data)
        plan = list(_calls(config, start, last))
        values: Values = {}

        def report(done: int, count: int, metrics: Metrics) -> None:
            averages = _averages(strategy.fetch(metrics), count)
            _require_finite(averages, done - count, count, folder)
            log.write(done, "train", {name: float(np.mean(each)) for name, each in averages.items()})
            log.write(done, "train", {"learning_rate": float(learning_rates[done - 1])})
            display.step(done, {"loss": float(averages["loss"][-1])})

        feeds = make_feeds(experiment, train_examples, plan)
        # Explicit placement only: an implicit copy between host and device would be a hidden cost of every step.
        with display.training(start), jax.transfer_guard("disallow"):
            waiting = None
            for (begin, count), feed in zip(plan, feeds, strict=True):
                state, metrics = run_steps(state, data, feed, strategy.place(np.int32(count)))
                # The figures of a call are fetched while the next one runs.
                if waiting:
                    report(*waiting)
                waiting, done = (begin + count, count, metrics), begin + count
                if not _due(done, last, training.evaluate_every, training.checkpoint_every):
                    continue
                report(*waiting)
                waiting = None
                values = evaluate(state.params, state.model_state, validation_examples)
                log.write(done, "validation", values)
                display.say(f"step {done} | validation {_shown(values)}")
                if _due(done, last, training.checkpoint_every):
                    checkpoints.save(strategy.unreplicated(state), values)
        if last == training.steps:
            values = evaluate(state.params, state.model_state, experiment.task.examples("test"))
            log.write(last, "test", values)
        log.close()
        checkpoints.wait()
    where = "test" if last == training.steps else "validation"
    display.say(f"step {last} | {where} {_shown(values)} | {folder.path}")
    return values


def make_run_steps(experiment: Experiment, examples: Examples) -> tuple[Callable[..., tuple[State, Metrics]], Tree]:
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
    resident = _lives_on_device(config, examples)

    def run_steps(state: State, data: Tree, feed: Tree, count: Int[Array, ""]) -> tuple[State, Metrics]:
        def batch_of(number: Int[Array, ""]) -> Tree:
            batch = jax.tree.map(lambda leaf: leaf[number], feed)
            return examples.take(data, batch.pop("example")) | batch if resident else batch

        def update(number: Int[Array, ""], carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
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
        stored = {"example": rows} if resident else jax.tree.map(lambda *leaves: np.stack(leaves), *map(examples.read, rows))
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


def show_cost(experiment: Experiment, display: Display) -> None:
    """Prints parameters by part and operations."""
    abstract = experiment.abstract_state
    parts = parameters_by_part(abstract.params)
    one = forward_flops(experiment.network, abstract.params, abstract.model_state, experiment.task.dummy(1))
    unit, per_example = experiment.task.units
    display.table("parameters", ["part", "number"], [*map(list, parts.items()), ["all", parameters(abstract.params)]])
    step = 3 * one * experiment.config.training.batch_size
    display.say(
        f"forward pass: {one // per_example:,} FLOPs for one of {unit}; an update (about 3 forward passes a batch of "
        f"{experiment.config.training.batch_size}): {step:,} FLOPs; {experiment.strategy.name} on "
        f"{experiment.strategy.num_devices} {jax.default_backend()} device(s)"
    )


def _lives_on_device(config: Config, examples: Examples) -> bool:
    wanted = config.training.input
    return wanted == "device" or (wanted == "auto" and examples.num_bytes <= DEVICE_BYTES)


def _calls(config: Config, start: int, last: int) -> Iterator[tuple[int, int]]:
    """(first step, number of updates) of each compiled call; none reaches past an evaluation or a checkpoint."""
    training = config.training
    while start < last:
        ends = (_next(start, every) for every in (training.evaluate_every, training.checkpoint_every))
        end = min(start + training.steps_per_call, last, *ends)
        yield start, end - start
        start = end


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _due(step: int, last: int, *intervals: int) -> bool:
    return step == last or any(step % every == 0 for every in intervals)


def _averages(metrics: Metrics, count: int) -> dict[str, np.ndarray]:
    """Per-step averages of the first `count` steps of a call."""
    return {name: (total / np.maximum(weight, 1e-30))[:count] for name, (total, weight) in metrics.items()}


def _require_finite(averages: dict[str, np.ndarray], begin: int, count: int, folder: RunFolder) -> None:
    for offset, name in itertools.product(range(count), ("loss", "gradient_norm")):
        if not np.isfinite(averages[name][offset]):
            raise NonFiniteError(
                f"{name}={averages[name][offset]} in update {begin + offset + 1}; the run stops and saves nothing; "
                f"checkpoints in {folder.checkpoints} are untouched. Try a smaller optimizer.learning_rate, more "
                "optimizer.warmup_steps, or optimizer.clip_norm"
            )


def _shown(values: Values) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
