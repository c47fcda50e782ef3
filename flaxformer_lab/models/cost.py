"""What a network costs: parameters by part, and floating-point operations as the compiler counts them."""

from typing import Any

import jax
import numpy as np

from flaxformer_lab.models.network import PureNetwork, leaf_paths

Tree = Any  # a pytree of arrays


def parameters(params: Tree) -> int:
    """The number of values in a pytree of arrays or of shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def parameters_by_part(params: Tree) -> dict[str, int]:
    """Parameters of embedding, attention, ffn, norm, position and head, without the parts that have none."""
    parts: dict[str, int] = {}
    for path, leaf in leaf_paths(params).items():
        names = path.split(".")
        part = next((name for name in ("attention", "ffn", "position") if name in names), None)
        part = part or ("norm" if any("norm" in name for name in names) else names[0])
        parts[part] = parts.get(part, 0) + int(np.prod(leaf.shape))
    return parts


def forward_flops(network: PureNetwork, params: Tree, model_state: Tree, inputs: jax.ShapeDtypeStruct) -> int:
    """Operations of one forward pass over `inputs`, from XLA's own analysis of the program before optimisation."""
    lowered = jax.jit(network.apply).lower(params, model_state, inputs)
    return int(lowered.cost_analysis()["flops"])


def compiled_bytes(network: PureNetwork, params: Tree, model_state: Tree, inputs: jax.ShapeDtypeStruct) -> int:
    """Peak bytes of a forward pass over `inputs` by the compiler's report: arguments, outputs and what lies between."""
    memory = jax.jit(network.apply).lower(params, model_state, inputs).compile().memory_analysis()
    return int(memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes)
