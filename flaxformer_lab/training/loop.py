"""Training from a config to a checkpoint and its test metrics."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import jax

from flaxformer_lab.config import Config, as_dict
from flaxformer_lab.errors import Terminated
from flaxformer_lab.models.cost import cost_table
from flaxformer_lab.tasks import SPLITS
from flaxformer_lab.training import hosts
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.evaluation import Values, make_evaluate
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.feeds import call_schedule, check_batch_size, make_feeds, should_run
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.initialization import first_state, starting_weights
from flaxformer_lab.training.loggers import (
    DEFAULT_LOGGERS,
    Callback,
    Destination,
    Logger,
    Loggers,
    check_loggers,
)
from flaxformer_lab.training.logging import Display, MetricsLog, Record, entries_of
from flaxformer_lab.training.programs import History, make_run_steps, run_calls
from flaxformer_lab.training.termination import Termination


def train(
    config: Config,
    workdir: str | Path,
    *,
    stop_at: int | None = None,
    quiet: bool = False,
    loggers: Sequence[str | Logger | Callback] = DEFAULT_LOGGERS,
    callbacks: Sequence[Logger | Callback] = (),
) -> Values:
    """Trains to `config.training.steps`, or to `stop_at`, from the last checkpoint in `workdir` if there is one.

    loggers: names (`loggers.LOGGERS`), objects with write(step, split, metrics) or functions of these three; one that
        fails is dropped with a warning. callbacks: such objects or functions, whose errors end the run.

    Returns the test metrics of the last step (the validation metrics when stopped early).

    Raises:
        ConfigError: the config cannot be run, or the folder belongs to another one; nothing has been written.
        RunError: the folder cannot be read or written.
        NonFiniteError: the loss or the gradient stopped being finite; the last good checkpoint stays.
        Terminated: the process was asked to end; the state is saved, and the same call goes on from there.
    """
    check_loggers(loggers, callbacks)
    experiment = make_experiment(config)
    config, layout, strategy = experiment.config, experiment.layout, experiment.strategy
    # All splits at the start: one that cannot be used is an error now, not after hours of training.
    examples = {split: experiment.task.examples(split) for split in SPLITS}
    check_batch_size(config, examples["train"])
    folder, training = RunFolder(workdir), config.training
    initial = None if folder.saved_steps() else starting_weights(experiment)
    last = training.steps if stop_at is None else min(training.steps, stop_at)
    with contextlib.ExitStack() as stack:
        termination = stack.enter_context(Termination())
        if hosts.is_primary():
            stack.enter_context(folder.locked())
            folder.claim(config, dict(experiment.task.metadata))
        hosts.wait_for_all("the folder is claimed")
        abstract, inputs = experiment.abstract_state, experiment.task.input_spec(1)
        costs = cost_table(experiment.network, abstract.params, abstract.model_state, inputs, training.batch_size)
        quiet = quiet or not hosts.is_primary()
        units, batch_size = experiment.task.units, training.batch_size
        display = Display(steps=training.steps, units=units, batch_size=batch_size, quiet=quiet)
        display.facts(experiment.task.facts())
        display.costs(*costs, f"{strategy.name}, {strategy.num_devices} x {jax.default_backend()}")
        keep = {"keep_last": training.keep_last, "keep_best": training.keep_best}
        checkpoints = stack.enter_context(Checkpoints(folder.checkpoints, **keep))
        state, messages = first_state(experiment, checkpoints, initial)
        display.print(*messages)
        start, state = int(state.step), strategy.place_state(state, layout)
        destination = Destination(
            folder.path, as_dict(config), lambda: entries_of(folder.metrics), resumed_step=start, quiet=quiet
        )
        others, writes = Loggers(loggers, callbacks, destination), hosts.is_primary()
        log = stack.enter_context(MetricsLog(folder.metrics, others, resumed_step=start, writes=writes))
        evaluate_split = make_evaluate(experiment)
        record = Record(experiment, folder, log, display)

        def evaluate_and_log(step: int, split: str) -> Values:
            values = evaluate_split(state.params, state.model_state, examples[split])
            record.evaluation(step, split, values)
            return values

        schedule = call_schedule(config, start, last)
        feeds = stack.enter_context(contextlib.closing(make_feeds(experiment, examples["train"], schedule)))
        run_steps, data = make_run_steps(experiment, examples["train"])
        data = strategy.place(data)
        run_call = lambda state, feed, count: run_steps(state, data, feed, count)  # noqa: E731
        calls = run_calls(run_call, state, schedule, feeds, strategy.place)
        values: Values = {}
        unread: tuple[int, int, History] | None = None  # of the last call: it is fetched while the next one runs
        with display.training(start):
            for step, count, state, history in calls:
                if unread:
                    record.call(*unread)
                unread, ending = (step, count, history), termination.agreed()
                evaluates = should_run(step, last, training.evaluate_every, training.checkpoint_every)
                if not (evaluates or ending):
                    continue
                record.call(*unread)
                unread = None
                if evaluates:
                    values = evaluate_and_log(step, "validation")
                if ending or should_run(step, last, training.checkpoint_every):
                    checkpoints.save(strategy.unreplicate(state), values if evaluates else None)
                if ending:
                    checkpoints.wait()
                    raise Terminated(
                        f"asked to end by {termination.signal.name}; step {step} is saved, and the same command goes "
                        "on from there",
                        termination.signal,
                    )
        if last == training.steps:
            values = evaluate_and_log(last, "test")
        elif not values:  # nothing was left to do
            values = evaluate_and_log(start, "validation")
        checkpoints.wait()
    display.print(f"the run is in {folder.path}")
    return values
