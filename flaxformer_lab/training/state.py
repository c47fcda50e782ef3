"""The state of a run, and what a step is.

step: the number of optimizer updates applied so far. A fresh state has step 0; a run of N steps applies exactly N
updates; the checkpoint named N holds the state after update N. The update that takes the state from step n to n + 1
uses the data and the random draws of n.

Randomness is derived from (seed, stream, step) and never stored, so a state and a config are all that a restart needs.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Integer, Key

from flaxformer_lab.functional.trees import replace_leaves
from flaxformer_lab.models.network import PureNetwork

Tree = Any  # a pytree of arrays
Seed = int | np.uint32 | Integer[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that training changes. Like every pytree it may also hold shapes, or one value per device."""

    step: Tree  # Int[Array, ""]
    params: Tree
    model_state: Tree
    opt_state: Tree


class RngStream(enum.IntEnum):
    """Independent uses of randomness; the numbers must never change."""

    INIT = 0
    PREPARE = 1
    DROPOUT = 2
    EVALUATE = 3


def stream_key(seed: Seed, stream: RngStream, step: Int[Array, ""] | int = 0) -> Key[Array, ""]:
    """The key of one use of randomness at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def initial_state(
    network: PureNetwork,
    optimizer: optax.GradientTransformation,
    seed: Seed,
    initial: Mapping[str, Any] | None = None,
) -> State:
    """The state at step 0. Pure: call it under `jax.jit`, or `jax.eval_shape` for shapes alone.

    initial: values of some parameters and of some model state, by dotted name, instead of those that are drawn.
    """
    params, model_state = network.init(stream_key(seed, RngStream.INIT))
    if initial:
        params, model_state = (replace_leaves(tree, initial) for tree in (params, model_state))
    return State(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params))
