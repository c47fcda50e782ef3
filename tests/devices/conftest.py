"""What the tests of absent devices share: small models and their compiled train steps."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

from flaxformer_lab.config import MeshConfig, parse_config
from flaxformer_lab.parsing import override
from flaxformer_lab.training.mesh import Mesh
from flaxformer_lab.training.programs import make_experiment
from flaxformer_lab.training.single import Single
from tools.absent_devices import Program, compile_train_step

TREE = {
    "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": 128},
    "model": {"width": 64, "depth": 1, "attention": {"num_heads": 2}, "causal": True},
    "training": {"batch_size": 2, "evaluate_batch_size": 2},
    "parallelism": {"strategy": "single"},
}
FACTS = {"num_symbols": 256, "image_shape": [16, 16, 1], "num_classes": 10}


@functools.cache
def _compiled(devices: tuple, changes: str, sizes: str) -> Program:
    tree: dict[str, Any] = TREE
    for key, value in json.loads(changes).items():
        tree = override(tree, key, value)
    strategy = Mesh(MeshConfig(**json.loads(sizes)), devices) if len(devices) > 1 else Single()
    return compile_train_step(make_experiment(parse_config(tree), FACTS, strategy), devices, jnp.uint8)


@pytest.fixture(scope="session")
def train_step() -> Callable[..., Program]:
    """The function that compiles an update of a small model: `train_step(devices, {"model.dtype": "bfloat16"})`.

    Several devices make a mesh, whose sizes may follow: `train_step(devices, {}, fsdp=8)`.
    """

    def compile_it(devices: tuple, changes: dict[str, Any] | None = None, **sizes: int) -> Program:
        return _compiled(devices, json.dumps(changes or {}), json.dumps(sizes))

    return compile_it
