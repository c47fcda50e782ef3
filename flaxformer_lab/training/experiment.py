"""A config made ready to run."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import optax

from flaxformer_lab.config import Config, parse_config
from flaxformer_lab.models.lora import with_lora
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.tasks import Task, make_task
from flaxformer_lab.training.optimizer import make_optimizer, make_schedule
from flaxformer_lab.training.parallelism import Strategy, make_strategy
from flaxformer_lab.training.scaling import scale_initial_weights
from flaxformer_lab.training.state import State, initial_state


@dataclass(frozen=True, repr=False)
class Experiment:
    """The parts that a config names. They do not depend on the step, and making them writes nothing."""

    config: Config
    task: Task
    network: PureNetwork
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    strategy: Strategy

    def __repr__(self) -> str:
        return f"Experiment({self.config.model.name} for {self.config.task.name}, {self.network})"

    @functools.cached_property
    def abstract_state(self) -> State:
        """Shapes and types of the state."""
        return jax.eval_shape(lambda: initial_state(self.network, self.optimizer, self.config.seed))

    @functools.cached_property
    def layout(self) -> State | None:
        """The shardings of the state's leaves; None where every device holds all of it."""
        return self.strategy.layout(self.abstract_state, self.network.axes)


def make_experiment(
    config: Config, metadata: dict[str, Any] | None = None, strategy: Strategy | None = None
) -> Experiment:
    """The experiment that a config describes. metadata: as in `Task`; strategy: instead of the config's.

    The config may have been made by hand (`dataclasses.replace`): it is held against all rules here.

    Raises:
        ConfigError: parts that do not fit one another, the data, or the devices.
        DataError: data that are missing or damaged.
    """
    config = parse_config(config)
    strategy = strategy or make_strategy(config)
    task = make_task(config.task, metadata)
    schedule = make_schedule(config.optimizer, config.training.steps)
    network = task.network(config.model)
    if config.optimizer.scaling == "mup":
        network = scale_initial_weights(network)
    if config.training.lora_rank:
        network = with_lora(network, config.training.lora_rank)
    train_only = config.training.trained
    optimizer = make_optimizer(config.optimizer, config.training.steps, fans=network.fans, train_only=train_only)
    strategy.check(network, task.input_spec(1))
    return Experiment(config, task, network, schedule, optimizer, strategy)
