"""Where a result comes from: the command, the versions, the device, and the commit of a checkout; no date."""

import functools
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

from flaxformer_lab.version import __version__

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def provenance(device: str) -> dict[str, str]:
    """What a report says of how a result was made; what is not known is left out."""
    own = f"flaxformer_lab {__version__}"
    libraries = (f"{name} {metadata.version(name)}" for name in LIBRARIES)
    versions = [f"Python {platform.python_version()}", own, *libraries]
    # Where it ran, and beside what, changes no result.
    flags = [argument for argument in sys.argv[1:] if argument.startswith(("--config=", "--config.", "--only="))]
    command = f"python -m flaxformer_lab.ablate {shlex.join(flags)}".strip()
    known = {"command": command, "versions": ", ".join(versions), "device": device, "commit": commit()}
    return {name: text for name, text in known.items() if text}


def describe_devices() -> str:
    """The devices that this process trains on: `2 x NVIDIA H100`, `4 x cpu`."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


@functools.cache
def commit() -> str:
    """The commit of the checkout that the package stands in, `-dirty` where files differ; empty where it is in none.

    FLAXFORMER_LAB_COMMIT names it for files that were copied to another machine without their history.
    """
    if os.environ.get("FLAXFORMER_LAB_COMMIT"):
        return os.environ["FLAXFORMER_LAB_COMMIT"]
    git = ("git", "-C", str(PACKAGE))
    options = {"capture_output": True, "text": True, "check": True, "timeout": 60}
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], **options)  # not of another checkout
        found = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], **options)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
