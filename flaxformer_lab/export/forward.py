"""A trained model as one function of arrays by name, from raw examples to outputs; each format writes and reads it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.training.experiment import Experiment, make_experiment

Tree = Any  # a pytree of arrays
Spec = dict[str, Any]  # shapes and types of arrays by name; the first axis is the batch, which may have any size


@dataclass(frozen=True)
class Forward:
    """What `Run.predict` does: forward(**arrays) -> predictions, with arrays as `spec` names them.

    They are the stored features of examples where the task prepares those on the device (`Task.raw_spec`), else the
    network's inputs.

    params, model_state: NumPy arrays, which become constants of a program.
    valid: shapes and types of the masks of padding [batch, tokens], where the task's examples have any; arguments, too.
    """

    experiment: Experiment
    params: Tree
    model_state: Tree
    valid: Tree = None

    @property
    def spec(self) -> Spec:
        task = self.experiment.task
        raw = task.raw_spec(1)
        return (by_name(task.input_spec(1), "inputs") if raw is None else raw) | _by_mask(self.valid)

    def __call__(self, **arrays: Array) -> Tree:
        task, network = self.experiment.task, self.experiment.network
        raw, wanted = task.raw_spec(1), task.input_spec(1)
        if raw is None:
            inputs = jax.tree.unflatten(
                jax.tree.structure(wanted), [arrays[name] for name in by_name(wanted, "inputs")]
            )
        else:
            inputs = task.preprocess({name: arrays[name] for name in raw})
        valid = jax.tree.unflatten(jax.tree.structure(self.valid), [arrays[name] for name in _by_mask(self.valid)])
        variables = jax.tree.map(jnp.asarray, (self.params, self.model_state))
        return task.predictions_of(network.apply(*variables, inputs, valid=valid)[0])

    @property
    def in_float32(self) -> "Forward":
        """The same weights in a model that computes in float32, whatever `model.dtype` and `model.precision` say."""
        experiment = self.experiment
        model = dataclasses.replace(experiment.config.model, dtype="float32", precision="highest")
        if model == experiment.config.model:
            return self
        config = dataclasses.replace(experiment.config, model=model)
        made = make_experiment(config, experiment.task.metadata, experiment.strategy)
        if experiment.network.hooks:
            made = dataclasses.replace(made, network=made.network.with_hooks(experiment.network.hooks))
        return dataclasses.replace(self, experiment=made)

    def arrays_of(self, stored: dict[str, Array], prepared: dict[str, Any]) -> dict[str, Array]:
        """The arguments for examples of the task, as they are stored and as they are prepared.

        Several inputs of one example, as the two texts of a rated pair, become so many rows.
        """
        task = self.experiment.task
        raw = task.raw_spec(1)
        if raw is None:
            spec, arrays = by_name(task.input_spec(1), "inputs"), by_name(prepared["inputs"], "inputs")
        else:
            spec, arrays = raw, stored
        masks = _by_mask(prepared.get("valid"))
        arrays = {name: arrays[name].reshape(-1, *like.shape[1:]) for name, like in spec.items()}
        return arrays | {name: mask.reshape(-1, mask.shape[-1]) for name, mask in masks.items()}


@dataclass(frozen=True)
class DecodeStep(Forward):
    """One step of decoding: the last symbol of each text and its cache in, the next symbol's logits and the cache out.

    A text begins with a cache of zeros. Its arrays are called `past_NAME` before the step and `present_NAME` after it.
    """

    @property
    def _cache(self) -> Tree:
        """The cache of one text. Some arrays have several rows for it, one for each head.

        Raises:
            ConfigError: the model takes no symbols, or is not causal.
        """
        network, wanted = self.experiment.network, super().spec
        if list(wanted) != ["inputs"] or wanted["inputs"].ndim != 2 or wanted["inputs"].dtype != jnp.int32:
            raise ConfigError(f"--decode is for models of texts, not for task.name={self.experiment.config.task.name}")
        symbols = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 1), (1,))]
        return jax.eval_shape(network.prefill, *network.shapes, *symbols)[1]

    @property
    def spec(self) -> Spec:
        rows = {name: leaf.shape if leaf.shape[0] == 1 else (1, *leaf.shape) for name, leaf in self._leaves().items()}
        cache = {name: jax.ShapeDtypeStruct(rows[name], leaf.dtype) for name, leaf in self._leaves().items()}
        return {"symbols": jax.ShapeDtypeStruct((1,), jnp.int32)} | cache

    def _leaves(self) -> dict[str, Any]:
        return {f"{PAST}{name}".translate(NAMES): leaf for name, leaf in leaf_paths(self._cache).items()}

    def __call__(self, symbols: Array, **cache: Array) -> dict[str, Array]:
        leaves, spec = self._leaves(), self.spec
        before = [cache[name].reshape(-1, *leaf.shape[1:]) for name, leaf in leaves.items()]
        variables = jax.tree.map(jnp.asarray, (self.params, self.model_state))
        before = jax.tree.unflatten(jax.tree.structure(self._cache), before)
        logits, after = self.experiment.network.decode(*variables, symbols, before)
        after = {
            name: leaf.reshape(-1, *spec[name].shape[1:])
            for name, leaf in zip(leaves, jax.tree.leaves(after), strict=True)
        }
        return {"logits": logits} | {name.replace(PAST, PRESENT, 1): leaf for name, leaf in after.items()}

    def over_texts(self, step: Callable[..., Tree]) -> Callable[..., np.ndarray]:
        """Logits at each symbol of whole texts [batch, tokens, symbols], by one step of a file after another."""

        def predict(inputs: Array) -> np.ndarray:
            texts, logits = np.asarray(inputs), []
            arrays = {name: np.zeros((len(texts), *like.shape[1:]), like.dtype) for name, like in self.spec.items()}
            for symbols in texts.T:
                outputs = by_name(jax.device_get(step(**arrays | {"symbols": symbols})), "outputs")
                logits.append(outputs.pop("logits"))
                arrays = {name.replace(PRESENT, PAST, 1): leaf for name, leaf in outputs.items()}
            return np.stack(logits, axis=1)

        return predict


PAST, PRESENT = "past_", "present_"
NAMES = str.maketrans(".", "_", "[]")


def by_name(tree: Tree, name: str) -> dict[str, Any]:
    """The leaves by dotted name; a tree that is one leaf is called `name`."""
    return {path or name: leaf for path, leaf in leaf_paths(tree).items()}


def _by_mask(valid: Tree) -> dict[str, Any]:
    """`valid`, or `valid.NAME` where there are several."""
    return {f"valid.{path}".rstrip("."): leaf for path, leaf in leaf_paths(valid).items()}


def check_arrays(arrays: dict[str, Any], spec: Spec) -> None:
    """Raises ConfigError where arrays have other names, shapes or kinds than a model takes."""
    if set(arrays) != set(spec):
        raise ConfigError(f"the model takes {', '.join(spec)}, not {', '.join(map(str, arrays)) or 'nothing'}")
    rows = {array.shape[:1] for array in arrays.values()}
    for name, like in spec.items():
        array = arrays[name]
        kinds = [jnp.issubdtype(each.dtype, jnp.floating) for each in (array, like)]
        if array.shape[1:] != tuple(like.shape[1:]) or kinds[0] != kinds[1] or len(rows) > 1 or rows <= {(), (0,)}:
            raise ConfigError(
                f"{name} of shape {array.shape} ({array.dtype}) does not fit the model, which takes "
                f"(batch, {', '.join(map(str, like.shape[1:]))}) of {like.dtype}; give at least one example"
            )
