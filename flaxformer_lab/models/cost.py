"""The cost of a network: parameters by part, floating-point operations, bytes."""

from typing import Any

import jax
import numpy as np

from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.flops import as_counted, count_flops
from flaxformer_lab.models.footprint import program_bytes
from flaxformer_lab.models.network import PureNetwork

Tree = Any  # a pytree of arrays


def parameters(params: Tree) -> int:
    """The number of values in a pytree of arrays or of shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def parameters_by_part(params: Tree) -> dict[str, int]:
    """Parameters of embedding, attention, ffn, norm, position and head; parts without parameters are left out.

    Attention to another sequence counts as attention.
    """
    parts: dict[str, int] = {}
    for path, leaf in leaf_paths(params).items():
        names = path.split(".")
        names = ["attention" if name == "cross_attention" else name for name in names]
        part = next((name for name in ("attention", "ffn", "position") if name in names), None)
        part = part or ("norm" if any("norm" in name for name in names) else names[0])
        parts[part] = parts.get(part, 0) + int(np.prod(leaf.shape))
    return parts


def cost_table(
    network: PureNetwork, params: Tree, model_state: Tree, inputs: Tree, batch_size: int
) -> tuple[list[list[Any]], list[list[Any]]]:
    """The rows shown before training: (part, parameters) and (operation, FLOPs); inputs: of one example."""
    parts = parameters_by_part(params)
    one = forward_flops(network, params, model_state, inputs)
    # The backward pass takes twice the operations of the forward pass: one product for each of a product's two inputs.
    operations = [["forward pass of one example", one], [f"update on a batch of {batch_size}", 3 * one * batch_size]]
    return [*map(list, parts.items()), ["all", parameters(params)]], operations


def forward_flops(network: PureNetwork, params: Tree, model_state: Tree, inputs: Tree) -> int:
    """Operations of one forward pass over `inputs`, counted by `count_flops`.

    Counted for the implementations of a CPU, so the number is the same on every machine.
    """
    with as_counted():
        return count_flops(network.apply, params, model_state, inputs)


def compiled_bytes(network: PureNetwork, params: Tree, model_state: Tree, inputs: Tree) -> int:
    """Peak bytes of a forward pass over `inputs`: arguments, outputs and temporary arrays (`program_bytes`)."""
    arguments = params, model_state, inputs
    return program_bytes(jax.jit(network.apply).lower(*arguments).compile(), network.apply, *arguments)
