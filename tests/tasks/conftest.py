"""Examples of a probe as NumPy's arrays, each kind drawn once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.parsing import override
from flaxformer_lab.tasks import make_task


@functools.cache
def _examples(config: Any, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys = jax.random.split(jax.random.key(7), number)
    return tuple(map(np.asarray, jax.jit(jax.vmap(make_task(config).draw))(keys)))


@pytest.fixture(scope="session")
def examples_of() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The function that draws `number` inputs, targets and weights of a task's config."""
    return _examples


@pytest.fixture(scope="session")
def model() -> Callable[..., ModelConfig]:
    """The function that makes a model's config from knobs: `model({"ffn.kind": "off"})`."""

    def make(knobs: dict[str, Any]) -> ModelConfig:
        tree: dict[str, Any] = {}
        for key, value in knobs.items():
            tree = override(tree, key, value)
        return parse_config({"model": tree}).model

    return make
