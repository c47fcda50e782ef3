"""Pytrees of nested dictionaries, leaf by leaf with dotted names."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax

Tree = Any  # a pytree of arrays


def leaf_paths(tree: Tree) -> dict[str, Any]:
    """Returns `{"body.blocks.0.ffn.up.kernel": leaf, ...}` of a pytree of nested dictionaries."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def is_named(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern is the leaf's name, a part above it (`body`), or a wildcard that fits it (`*.ffn.*`)."""
    return any(name == p or name.startswith(f"{p}.") or fnmatch.fnmatch(name, p) for p in patterns)


def replace_leaves(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """The tree of nested dictionaries with the leaves that `values` names replaced."""
    leaves = leaf_paths(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [values.get(name, leaf) for name, leaf in leaves.items()])
