"""Training from a config to a checkpoint and its test metrics."""

import contextlib
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer_lab.config import Config
from flaxformer_lab.errors import NonFiniteError, Terminated
from flaxformer_lab.models.cost import forward_flops, parameters, parameters_by_part
from flaxformer_lab.tasks import SPLITS
from flaxformer_lab.training import hosts
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.evaluation import Values, make_evaluate
from flaxformer_lab.training.experiment import Experiment, make_experiment
from flaxformer_lab.training.feeds import call_schedule, make_feeds, should_run
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.initialization import InitialWeights, initial_weights
from flaxformer_lab.training.logging import Display, MetricsLog
from flaxformer_lab.training.optimizer import make_schedule
from flaxformer_lab.training.programs import History, make_run_steps, run_calls, values_by_step
from flaxformer_lab.training.state import State, initial_state
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
    layout, strategy = experiment.layout, experiment.strategy
    # All of them at the start, so that a test split which cannot be used does not show after hours of training.
    examples = {split: experiment.task.examples(split) for split in SPLITS}
    folder, training = RunFolder(workdir), config.training
    initial = None if folder.has_checkpoints() else initial_weights(training, experiment.abstract_state)
    last = min(training.steps, stop_at or training.steps)
    quiet = quiet or not hosts.is_primary()
    display = Display(steps=training.steps, units=experiment.task.units, batch_size=training.batch_size, quiet=quiet)
    with contextlib.ExitStack() as stack:
        termination = stack.enter_context(Termination())
        if hosts.is_primary():
            stack.enter_context(folder.locked())
            folder.claim(config, dict(experiment.task.metadata))
        hosts.wait_for_all("the folder is claimed")
        show_cost(experiment, display)
        keep = {"keep_last": training.keep_last, "keep_best": training.keep_best}
        checkpoints = stack.enter_context(Checkpoints(folder.checkpoints, **keep))
        state = first_state(experiment, checkpoints, display, initial)
        start, state = int(state.step), strategy.place_state(state, layout)
        logs = {"resumed_step": start, "writes": hosts.is_primary()}
        log = stack.enter_context(MetricsLog(folder.metrics, folder.tensorboard, **logs))
        record = Record(experiment, folder, log, display)
        evaluate_split = make_evaluate(experiment)

        def evaluate_and_log(step: int, split: str) -> Values:
            values = evaluate_split(state.params, state.model_state, examples[split])
            record.evaluation(step, split, values)
            return values

        run_steps, data = make_run_steps(experiment, examples["train"])
        data, schedule = strategy.place(data), call_schedule(config, start, last)
        feeds = stack.enter_context(contextlib.closing(make_feeds(experiment, examples["train"], schedule)))
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
                    raise Terminated(f"asked to end; step {step} is saved, and the same command goes on from there")
        if last == training.steps:
            values = evaluate_and_log(last, "test")
        elif not values:  # nothing was left to do
            values = evaluate_and_log(start, "validation")
        checkpoints.wait()
    display.say(f"the run is in {folder.path}")
    return values


def first_state(
    experiment: Experiment, checkpoints: Checkpoints, display: Display, initial: InitialWeights | None = None
) -> State:
    """The state of the newest checkpoint that is whole, or a fresh one where there is none."""
    state = checkpoints.restore_newest(experiment.abstract_state, experiment.layout)
    for warning in checkpoints.quarantined:
        display.say(f"warning: {warning}")
    if state is not None:
        display.say(f"resumed from the checkpoint of step {int(state.step)}")
        return state
    start = functools.partial(initial_state, experiment.network, experiment.optimizer, experiment.config.seed)
    if initial is None:
        return jax.jit(start, out_shardings=experiment.layout)()
    display.say(str(initial))
    return jax.jit(start, out_shardings=experiment.layout)(initial.values)


class Record:
    """Logs and shows the values of a run, and ends it where one is not finite."""

    def __init__(self, experiment: Experiment, folder: RunFolder, log: MetricsLog, display: Display):
        self._strategy, self._folder, self._log, self._display = experiment.strategy, folder, log, display
        config = experiment.config
        schedule = make_schedule(config.optimizer, config.training.steps)
        self._learning_rates = jax.device_get(jax.vmap(schedule)(jnp.arange(config.training.steps)))

    def call(self, step: int, count: int, history: History) -> None:
        """The `count` updates of a call that ended with `step`: their mean values."""
        by_step = values_by_step(self._strategy.fetch(history), count)
        for offset, name in itertools.product(range(count), ("loss", "gradient_norm")):
            self._require_finite(name, float(by_step[name][offset]), step - count + offset + 1)
        values = {name: float(np.mean(each)) for name, each in by_step.items()}
        self._log.write(step, "train", values | {"learning_rate": float(self._learning_rates[step - 1])})
        self._display.step(step, {"loss": float(by_step["loss"][-1])})

    def evaluation(self, step: int, split: str, values: Values) -> None:
        """The metrics of a split."""
        for name, value in values.items():
            self._require_finite(f"{split} {name}", value, step)
        self._log.write(step, split, values)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._display.say(f"step {step} | {split} {shown}")

    def _require_finite(self, name: str, value: float, step: int) -> None:
        if not np.isfinite(value):
            raise NonFiniteError(
                f"{name}={value} in update {step}; the run stops and saves nothing; checkpoints in "
                f"{self._folder.checkpoints} are untouched. Try a smaller optimizer.learning_rate, more "
                "optimizer.warmup_steps, or optimizer.clip_norm"
            )


def show_cost(experiment: Experiment, display: Display) -> None:
    """Prints parameters by part and operations."""
    abstract = experiment.abstract_state
    parts = parameters_by_part(abstract.params)
    one = forward_flops(experiment.network, abstract.params, abstract.model_state, experiment.task.input_spec(1))
    batch_size, strategy = experiment.config.training.batch_size, experiment.strategy
    display.table("parameters", ["part", "number"], [*map(list, parts.items()), ["all", parameters(abstract.params)]])
    # The backward pass takes twice the operations of the forward pass: one product for each of a product's two inputs.
    rows = [["forward pass of one example", one], [f"update on a batch of {batch_size}", 3 * one * batch_size]]
    display.table(
        f"operations ({strategy.name}, {strategy.num_devices} x {jax.default_backend()})", ["", "FLOPs"], rows
    )
