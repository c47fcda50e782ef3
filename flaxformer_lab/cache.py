"""The cache folder, for prepared data sets and compiled programs."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Returns the cache's sub-folder `name`; it need not exist yet.

    `FLAXFORMER_LAB_CACHE` names the cache; without it, `flaxformer_lab` under `XDG_CACHE_HOME` or `~/.cache`.
    """
    chosen = os.environ.get("FLAXFORMER_LAB_CACHE")
    root = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flaxformer_lab"
    return root.expanduser() / name
