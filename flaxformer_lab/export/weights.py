"""safetensors: the weights by dotted names, and in the header what the lab needs to make the model again.

`training.init_from` takes such a file, and any reader of safetensors its arrays.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flaxformer_lab.config import as_dict, parse_config
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.export.forward import Forward, Spec, Tree
from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.single import Single

HEADER = "flaxformer_lab"  # the name of the lab's text in the file's header


def encode(forward: Forward) -> bytes:
    """The bytes of the file."""
    arrays = leaf_paths(forward.params) | leaf_paths(forward.model_state)
    experiment = forward.experiment
    header = {
        "config": as_dict(experiment.config),
        "metadata": experiment.task.metadata,
        "valid": jax.tree.map(lambda leaf: list(leaf.shape), forward.valid),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # One text: several would have another order each time.
    return save(arrays, {HEADER: json.dumps(header)})


def read(path: Path) -> tuple[Spec, Callable[..., Tree]]:
    """The arguments of the model in a file, by name, and the model as a function.

    Raises:
        RunError: the file is damaged, or its arrays are not those of the model that its header describes.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        config, metadata, masks = (header[name] for name in ("config", "metadata", "valid"))
        experiment = make_experiment(parse_config(config), metadata, Single())
    except (OSError, SafetensorError, ConfigError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged, or not written by the lab: {type(error).__name__}: {error}") from error
    wanted = leaf_paths(experiment.network.shapes[0]) | leaf_paths(experiment.network.shapes[1])
    for name in wanted.keys() | arrays.keys():
        shapes = [getattr(each.get(name), "shape", None) for each in (wanted, arrays)]
        if shapes[0] != shapes[1]:
            raise RunError(f"{path} is damaged: the model has {name} of shape {shapes[0]}, the file has {shapes[1]}")
    params, model_state = (replace_leaves(tree, arrays) for tree in experiment.network.shapes)
    is_shape = lambda each: isinstance(each, list)  # noqa: E731
    valid = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, bool), masks, is_leaf=is_shape)
    forward = Forward(experiment, params, model_state, valid)
    return forward.spec, jax.jit(lambda **arrays: forward(**arrays))
