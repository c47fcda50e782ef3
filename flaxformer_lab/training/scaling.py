"""Initial weights and learning rates by the fan-in of each dense block of a map (`optimizer.scaling=mup`).

At one Adam rate a dense map moves its outputs by about rate x fan-in, a diagonal one by the rate. So that one rate
suits both, each dense block of d_in by d_out has a rate in proportion to 1 / d_in, and starts with a standard deviation
of sqrt(min(d_in, d_out)) / d_in (Yang et al. 2022, muP; for structured maps Qiu et al. 2024, arXiv 2406.06248).
"""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax

from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.modules.projection import Fans

Tree = Any  # a pytree of arrays


def scale_by_fan_in(fans: Mapping[str, Fans], base: int) -> optax.GradientTransformation:
    """Multiplies the update of each map by base / fan-in, weight decay included; what is no map keeps its own.

    fans: of maps by dotted name. base: the fan-in of a map whose learning rate is the optimizer's.
    """
    factors = {name: base / each.fan_in for name, each in fans.items()}
    return optax.stateless(lambda updates, params: _scaled(updates, factors))


def scale_initial_weights(network: PureNetwork) -> PureNetwork:
    """The network whose maps start with the standard deviation above instead of 1 / sqrt(fan-in)."""
    draw = inspect.unwrap(network.init)  # compiled as a part of what is returned
    factors = {name: math.sqrt(min(each) / each.fan_in) for name, each in network.fans.items()}

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        params, model_state = draw(key)
        return _scaled(params, factors), model_state

    return dataclasses.replace(network, init=jax.jit(init))


def _scaled(tree: Tree, factors: Mapping[str, float]) -> Tree:
    return replace_leaves(tree, {n: leaf * factors[n] for n, leaf in leaf_paths(tree).items() if n in factors})
