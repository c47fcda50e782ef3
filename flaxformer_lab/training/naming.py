"""Names of arrays in configs: `training.init_only`, `training.train_only`."""

import fnmatch
from collections.abc import Sequence


def is_named(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern is the array's name, a part above it (`body`), or a wildcard that fits it (`*.ffn.*`)."""
    return any(name == p or name.startswith(f"{p}.") or fnmatch.fnmatch(name, p) for p in patterns)
