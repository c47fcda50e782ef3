"""Pytrees of nested dictionaries, leaf by leaf with dotted names."""

from collections.abc import Mapping
from typing import Any

import jax

Tree = Any  # a pytree of arrays


def leaf_paths(tree: Tree) -> dict[str, Any]:
    """Returns `{"body.blocks.0.ffn.up.kernel": leaf, ...}` of a pytree of nested dictionaries."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def replace_leaves(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """The tree of nested dictionaries with the leaves that `values` names replaced."""
    leaves = leaf_paths(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [values.get(name, leaf) for name, leaf in leaves.items()])
