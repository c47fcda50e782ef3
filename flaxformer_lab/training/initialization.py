"""Where a run starts: its newest checkpoint, or fresh weights, some of them from `training.init_from` by name."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxformer_lab.config import TrainingConfig
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.lora import PART, merged
from flaxformer_lab.models.pretrained.folder import is_pretrained, read_folder
from flaxformer_lab.models.tensors import load_tensors
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.experiment import Experiment, make_experiment
from flaxformer_lab.training.folder import RunFolder, changed, require_free
from flaxformer_lab.training.naming import is_named
from flaxformer_lab.training.parallelism import Strategy, make_strategy
from flaxformer_lab.training.single import Single
from flaxformer_lab.training.state import State, initial_state

Arrays = dict[str, np.ndarray]  # by dotted name, like body.blocks.0.ffn.up.kernel


@dataclass(frozen=True)
class InitialWeights:
    """What a fresh state starts from.

    values: by name. drawn: the names that are drawn at random instead. unused: the names in the source that the model
    lacks, or that `training.init_only` leaves out.
    """

    source: str
    values: Arrays
    drawn: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"initial weights from {self.source}: {len(self.values)} arrays taken, {len(self.drawn)} drawn"]
        lines += [f"  drawn: {', '.join(self.drawn)}"] if self.drawn else []
        lines += [f"  not used: {', '.join(self.unused)}"] if self.unused else []
        return "\n".join(lines)


def initial_weights(config: TrainingConfig, abstract: State) -> InitialWeights | None:
    """The weights that `training.init_from` names, as far as `training.init_only` admits them; None without it.

    abstract: shapes and types of the state to be filled.

    Raises:
        ConfigError: the source has nothing that the model has, or something of another shape.
        RunError: the source cannot be read.
    """
    if config.init_from is None:
        return None
    apart = not config.init_only or is_named(PART, config.init_only)
    found = _read(config.init_from, config.lora_rank if apart else 0)
    wanted = leaf_paths(abstract.params) | leaf_paths(abstract.model_state)
    only = config.init_only
    taken = [name for name in wanted if name in found and (not only or is_named(name, only))]
    if not taken:
        raise ConfigError(
            f"training.init_from={config.init_from} has no array that this model takes"
            + (f" and training.init_only={','.join(config.init_only)} admits" if config.init_only else "")
            + f"; it has {_some(found)}; the model has {_some(wanted)}"
        )
    for name in taken:
        if found[name].shape != wanted[name].shape:
            raise ConfigError(
                f"training.init_from={config.init_from}: {name} has the shape {found[name].shape}, but this model's "
                f"has {wanted[name].shape}; choose the same sizes, or name other parts in training.init_only"
            )
        if not np.all(np.isfinite(found[name])):
            raise ConfigError(f"training.init_from={config.init_from}: {name} has values that are not finite")
    return InitialWeights(
        source=config.init_from,
        values={name: found[name].astype(wanted[name].dtype) for name in taken},
        drawn=tuple(name for name in wanted if name not in taken),
        unused=tuple(name for name in found if name not in taken),
    )


def starting_weights(experiment: Experiment) -> InitialWeights | None:
    """What a fresh run starts from: with `optimizer.name=ridge` the solution, else as `initial_weights` says."""
    config = experiment.config
    if config.optimizer.name != "ridge":
        return initial_weights(config.training, experiment.abstract_state)
    values = experiment.task.solution(config.model, config.optimizer.weight_decay)
    return InitialWeights("least squares in closed form", values, drawn=(), unused=())


def restore_run(
    workdir: str | Path,
    step: int | str | None = None,
    strategy: Strategy | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Experiment, State]:
    """The experiment of a run's folder and its state at checkpoint `step` (default: the last; "best": lowest loss).

    changes: of keys that decide nothing (`FREE_KEYS`).
    strategy: None takes the config's, or one device where this machine has other devices than the run had.

    Raises:
        RunError: the folder is missing, empty or damaged, or has no such checkpoint.
    """
    require_free(changes or {})
    folder = RunFolder(workdir)
    config, metadata = folder.read()
    config = changed(config, changes or {})
    if strategy is None:
        try:
            strategy = make_strategy(config)
        except ConfigError:  # one device gives the same numbers
            strategy = Single(deterministic=config.model.dtype == "float32")
    try:
        experiment = make_experiment(config, metadata, strategy)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.path / 'metadata.json'} is damaged: {type(error).__name__}: {error}") from error
    while True:
        before = folder.saved_steps()
        try:
            with Checkpoints(folder.checkpoints, writable=False) as checkpoints:
                chosen = checkpoints.best() if step == "best" else step
                return experiment, checkpoints.restore(experiment.abstract_state, chosen)
        except RunError:
            # A run that is training may have replaced the checkpoint by a newer one meanwhile.
            if isinstance(step, int) or folder.saved_steps() == before:
                raise


def _read(source: str, lora_rank: int) -> Arrays:
    """Every array of a safetensors file, of the last checkpoint of a run, or of a pretrained model's folder.

    lora_rank: a run's low-rank maps of this rank stay apart; those of another are added to the kernels that they adapt.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise RunError(f"training.init_from={source} does not exist; name a run's folder or a .safetensors file")
    if path.is_dir() and not (path / "checkpoints").exists() and is_pretrained(path):
        params = read_folder(path).convert().params
        return {name: np.asarray(leaf) for name, leaf in leaf_paths(params).items()}
    is_run = path.is_dir() and ((path / "checkpoints").exists() or not any(path.glob("*.safetensors")))
    if not is_run:
        return load_tensors(path, "training.init_from")
    experiment, state = restore_run(path, strategy=Single())
    params = state.params if experiment.config.training.lora_rank == lora_rank else merged(state.params)
    leaves = leaf_paths(params) | leaf_paths(state.model_state)
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def _some(names: Mapping[str, Any]) -> str:
    first = list(names)[:4]
    return ", ".join(first) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if first else "nothing"


def first_state(
    experiment: Experiment, checkpoints: Checkpoints, initial: InitialWeights | None = None
) -> tuple[State, list[str]]:
    """The newest intact state, or a fresh one where there is none; and messages for the user."""
    state = checkpoints.restore_newest(experiment.abstract_state, experiment.layout)
    messages = [f"warning: {warning}" for warning in checkpoints.quarantined]
    if state is not None:
        return state, [*messages, f"resumed from the checkpoint of step {int(state.step)}"]
    fresh = functools.partial(initial_state, experiment.network, experiment.optimizer, experiment.config.seed)
    fresh = jax.jit(fresh, out_shardings=experiment.layout)
    return (fresh(), messages) if initial is None else (fresh(initial.values), [*messages, str(initial)])
