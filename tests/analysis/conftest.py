"""Small models of a task, ready to be measured."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxformer_lab.ablation.variants import apply_variants
from flaxformer_lab.analysis.subject import Subject
from flaxformer_lab.config import parse_config
from flaxformer_lab.parsing import override
from flaxformer_lab.tasks import Task, make_task
from flaxformer_lab.tasks.task import Batch

PRODUCT = {"name": "product", "tokens": 4, "features": 4}
SMALL = {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}}


@functools.cache
def _batch(task: str, examples: int) -> tuple[Task, Batch]:
    made = make_task(parse_config({"task": json.loads(task)}).task, {})
    stored = {"index": jnp.arange(examples, dtype=jnp.int32), "example_weight": jnp.ones(examples)}
    prepare = jax.jit(lambda stored, keys: made.prepare(stored, keys, training=False))
    return made, prepare(stored, jax.random.split(jax.random.key(1), examples))


@pytest.fixture(scope="session")
def subject(draw) -> Callable[..., Subject]:
    """The function that makes a small model: `subject({"ffn.kind": "off"}, ["norm_off"], task, examples=8)`.

    Its parameters are all drawn; with `fresh`, they are those that training would start from.
    """

    @functools.cache
    def make(knobs: str, variants: tuple[str, ...], task: str, examples: int, fresh: bool) -> Subject:
        tree: dict[str, Any] = {"model": SMALL, "task": json.loads(task)}
        for key, value in json.loads(knobs).items():
            tree = override(tree, f"model.{key}", value)
        config = apply_variants(parse_config(tree), variants).model
        task, batch = _batch(task, examples)
        network = task.network(config)
        params, model_state = jax.jit(network.init)(jax.random.key(0)) if fresh else draw(network.shapes)
        return Subject(config, task, network, params, model_state, batch)

    def by_value(
        knobs: Mapping[str, Any] | None = None,
        variants: Sequence[str] = (),
        task: Mapping[str, Any] = PRODUCT,
        examples: int = 8,
        fresh: bool = False,
    ) -> Subject:
        return make(json.dumps(knobs or {}), tuple(variants), json.dumps(task), examples, fresh)

    return by_value
