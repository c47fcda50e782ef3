"""A network's matrices in 8 bits."""

from typing import Any

import jax

from flaxformer_lab.functional.int8 import to_int8
from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.models.lora import merged
from flaxformer_lab.models.network import PureNetwork

Tree = Any  # a pytree of arrays


def quantized(network: PureNetwork, params: Tree) -> Tree:
    """The parameters with the kernels of dense maps as `Int8Matrix`: those of every block, LoRA's sum, and the head's.

    So are those of patches and of a stem. Tables of embeddings, of which a step reads one row, biases, norms and other
    kinds of maps stay as they are. The network takes such parameters like any others, but they have no gradient.
    """
    params = merged(params)
    dense = {name: leaf for name, leaf in leaf_paths(params).items() if name in network.fans and leaf.ndim == 2}
    kernels = {name: leaf for name, leaf in dense.items() if name.endswith(".kernel")}
    return replace_leaves(params, jax.jit(lambda kernels: jax.tree.map(to_int8, kernels))(kernels))
