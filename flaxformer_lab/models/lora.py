"""Low-rank adaptation: each dense map of the body plus a product of two small matrices (Hu et al. 2022, eq. 3)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from flaxformer_lab.functional.products import matmul
from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.models.network import PureNetwork, Tree

PART = "lora"  # of the parameters: the small matrices, beside the network's own


def with_lora(network: PureNetwork, rank: int) -> PureNetwork:
    """The network with W + A B in place of each kernel W of the body; A is drawn, B starts at 0.

    A network without hooks. Its parameters keep their names, and `lora.KERNEL.a` [in, rank] and `.b` [rank, out] join
    them.
    """
    params, model_state = network.shapes
    kernels = {path: leaf for path, leaf in leaf_paths(params).items() if _is_map(path) and len(leaf.shape) == 2}

    def init(key: Key[Array, ""]) -> tuple[Tree, Tree]:
        params, model_state = network.init(key)
        keys = jax.random.split(jax.random.fold_in(key, 1), max(1, len(kernels)))
        small = {
            _name(path): {
                "a": jax.random.normal(each, (leaf.shape[0], rank)) * leaf.shape[0] ** -0.5,
                "b": jnp.zeros((rank, leaf.shape[1])),
            }
            for each, (path, leaf) in zip(keys, kernels.items(), strict=False)
        }
        return params | {PART: small}, model_state

    def adapted(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *arguments, **options: function(merged(params), *arguments, **options)

    axes = dict(network.axes)
    for path in kernels:
        first, second = network.axes.get(path, (None, None))
        axes |= {f"{PART}.{_name(path)}.a": (first, None), f"{PART}.{_name(path)}.b": (None, second)}
    names = ("apply", "embed", "body", "prefill", "decode")
    functions = {name: adapted(getattr(network, name)) for name in names if getattr(network, name) is not None}
    shapes = jax.eval_shape(init, jax.random.key(0))[0], model_state
    return dataclasses.replace(network, init=jax.jit(init), shapes=shapes, axes=axes, **functions)


def merged(params: Tree) -> Tree:
    """The parameters of the network itself, with each A B added to its kernel; as they are without such."""
    if PART not in params:
        return params
    own = {name: tree for name, tree in params.items() if name != PART}
    small = params[PART]
    kernels = {path: leaf for path, leaf in leaf_paths(own).items() if _name(path) in small}
    if len(kernels) < len(small):
        raise ValueError(
            f"of {len(small)} adapted kernels {len(kernels)} are there: merge them before they are changed"
        )
    sums = {path: leaf + matmul(*(small[_name(path)][part] for part in "ab")) for path, leaf in kernels.items()}
    return replace_leaves(own, sums)


def _is_map(path: str) -> bool:
    return path.startswith("body.") and path.endswith(".kernel")


def _name(path: str) -> str:
    """A leaf's path as one key."""
    return path.replace(".", "_")
