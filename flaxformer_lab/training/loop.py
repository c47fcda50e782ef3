"""Training from a config to a checkpoint and its test figure."""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flaxformer_lab.config import Config
from flaxformer_lab.errors import NonFiniteError, Terminated
from flaxformer_lab.models.cost import forward_flops, parameters, parameters_by_part
from flaxformer_lab.tasks import SPLITS
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.training import hosts
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.logging import Display, MetricsLog
from flaxformer_lab.training.optimizer import make_schedule
from flaxformer_lab.training.programs import (
    Experiment,
    Values,
    call_schedule,
    make_evaluate,
    make_experiment,
    make_feeds,
    make_run_steps,
    should_run,
)
from flaxformer_lab.training.state import State, Tree, initial_state
from flaxformer_lab.training.termination import Termination


def train(config: Config, workdir: str | Path, *, stop_at: int | None = None, quiet: bool = False) -> Values:
    """Trains to `config.training.steps`, or to `stop_at`, from the last checkpoint in `workdir` if there is one.

    Returns the test metrics of the last step (the validation metrics when stopped early).

    Raises:
        ConfigError: the config cannot be run, or the folder belongs to another one; nothing has been written.
        RunError: the folder cannot be read or written.
        NonFiniteError: the loss or the gradient stopped being finite; the last good checkpoint stays.
        Terminated: the process was asked to end; the state is saved, and the same call goes on from there.
    """
    experiment = make_experiment(config)
    layout = experiment.layout
    # All of them at the start, so that a test split which cannot be used does not show after hours of training.
    train_examples, validation, test = map(experiment.task.examples, SPLITS)
    folder = RunFolder(workdir)
    training = config.training
    last = min(training.steps, stop_at or training.steps)
    quiet = quiet or not hosts.is_primary()
    display = Display(steps=training.steps, units=experiment.task.units, batch_size=training.batch_size, quiet=quiet)
    keep = {"keep_last": training.keep_last, "keep_best": training.keep_best}
    with contextlib.ExitStack() as stack:
        termination = stack.enter_context(Termination())
        if hosts.is_primary():
            stack.enter_context(folder.locked())
            folder.claim(config, dict(experiment.task.metadata))
        hosts.wait_for_all("the folder is claimed")
        show_cost(experiment, display)
        checkpoints = stack.enter_context(Checkpoints(folder.checkpoints, **keep))
        state = first_state(experiment, checkpoints, display)
        start, state = int(state.step), experiment.strategy.place_state(state, layout)
        log = stack.enter_context(
            MetricsLog(folder.metrics, folder.tensorboard, resumed_step=start, writes=hosts.is_primary())
        )
        evaluate = make_evaluate(experiment)

        def evaluate_and_log(step: int, state: State, split: str, examples: Examples) -> Values:
            values = evaluate(state.params, state.model_state, examples)
            for name, value in values.items():
                _require_finite(f"{split} {name}", value, step, folder)
            log.write(step, split, values)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            display.say(f"step {step} | {split} {shown}")
            return values

        values: Values = {}
        with display.training(start):
            yields = updates(experiment, train_examples, state, start, last, log, display, folder, termination)
            for step, now in stack.enter_context(contextlib.closing(yields)):
                state = now
                judged = should_run(step, last, training.evaluate_every, training.checkpoint_every)
                if judged:
                    values = evaluate_and_log(step, state, "validation", validation)
                if termination.agreed() or should_run(step, last, training.checkpoint_every):
                    checkpoints.save(experiment.strategy.unreplicate(state), values if judged else None)
                if termination.agreed():
                    checkpoints.wait()
                    raise Terminated(f"asked to end; step {step} is saved, and the same command goes on from there")
        if last == training.steps:
            values = evaluate_and_log(last, state, "test", test)
        elif not values:  # nothing was left to do
            values = evaluate_and_log(start, state, "validation", validation)
        checkpoints.wait()
    display.say(f"the run is in {folder.path}")
    return values


def first_state(experiment: Experiment, checkpoints: Checkpoints, display: Display) -> State:
    """The state of the newest checkpoint that is whole, or a fresh one where there is none."""
    state = checkpoints.restore_newest(experiment.abstract_state, experiment.layout)
    for warning in checkpoints.quarantined:
        display.say(f"warning: {warning}")
    if state is None:
        start = functools.partial(initial_state, experiment.network, experiment.optimizer, experiment.config.seed)
        return jax.jit(start, out_shardings=experiment.layout)()
    display.say(f"resumed from the checkpoint of step {int(state.step)}")
    return state


def updates(
    experiment: Experiment,
    examples: Examples,
    state: State,
    start: int,
    last: int,
    log: MetricsLog,
    display: Display,
    folder: RunFolder,
    termination: Termination,
) -> Iterator[tuple[int, State]]:
    """Applies the updates from `start` to `last`; yields (step, state) where an evaluation or a checkpoint is due.

    So it does between any two calls when the process is asked to end.

    The state that comes in is used up, as is each that is yielded once the next is asked for.
    """
    config, strategy = experiment.config, experiment.strategy
    training = config.training
    run_steps, data = make_run_steps(experiment, examples)
    schedule = make_schedule(config.optimizer, training.steps)
    learning_rates = jax.device_get(jax.vmap(schedule)(jnp.arange(training.steps)))

    def report(done: int, count: int, history: Tree) -> None:
        averages = _averages(strategy.fetch(history), count)
        for offset, name in itertools.product(range(count), ("loss", "gradient_norm")):
            _require_finite(name, float(averages[name][offset]), done - count + offset + 1, folder)
        values = {name: float(np.mean(each)) for name, each in averages.items()}
        log.write(done, "train", values | {"learning_rate": float(learning_rates[done - 1])})
        display.step(done, {"loss": float(averages["loss"][-1])})

    plan = list(call_schedule(config, start, last))
    data, waiting = strategy.place(data), None
    # Each of the few there are is placed once: among several processes placing is an agreement, which takes time.
    counts = {count: strategy.place(np.int32(count)) for count in sorted({count for _, count in plan})}
    for (begin, count), feed in zip(plan, make_feeds(experiment, examples, plan), strict=True):
        # Explicit placement only: an implicit copy between host and device would be a hidden cost of every step. The
        # guard ends before what is due is done: it belongs to the thread and would hold there too.
        with jax.transfer_guard("disallow"):
            state, metrics = run_steps(state, data, feed, counts[count])
            # The figures of a call are fetched while the next one runs.
            if waiting:
                report(*waiting)
            done, waiting = begin + count, (begin + count, count, metrics)
            interrupted = termination.agreed() or should_run(
                done, last, training.evaluate_every, training.checkpoint_every
            )
            if interrupted:
                report(*waiting)
                waiting = None
        if interrupted:
            yield done, state


def show_cost(experiment: Experiment, display: Display) -> None:
    """Prints parameters by part and operations."""
    abstract = experiment.abstract_state
    parts = parameters_by_part(abstract.params)
    one = forward_flops(experiment.network, abstract.params, abstract.model_state, experiment.task.dummy(1))
    batch_size, strategy = experiment.config.training.batch_size, experiment.strategy
    display.table("parameters", ["part", "number"], [*map(list, parts.items()), ["all", parameters(abstract.params)]])
    # The backward pass takes twice the operations of the forward pass: one product for each of a product's two inputs.
    rows = [["forward pass of one example", one], [f"update on a batch of {batch_size}", 3 * one * batch_size]]
    display.table(
        f"operations ({strategy.name}, {strategy.num_devices} x {jax.default_backend()})", ["", "FLOPs"], rows
    )


def _averages(
    history: dict[str, tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]], count: int
) -> dict[str, Float[np.ndarray, " count"]]:
    """Per-step averages of the first `count` steps of a call."""
    return {name: (total / np.maximum(weight, 1e-30))[:count] for name, (total, weight) in history.items()}


def _require_finite(name: str, value: float, step: int, folder: RunFolder) -> None:
    if not np.isfinite(value):
        raise NonFiniteError(
            f"{name}={value} in update {step}; the run stops and saves nothing; checkpoints in {folder.checkpoints} "
            "are untouched. Try a smaller optimizer.learning_rate, more optimizer.warmup_steps, or optimizer.clip_norm"
        )
