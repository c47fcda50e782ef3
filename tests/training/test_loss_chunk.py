"""`training.loss_chunk`: updates whose loss is computed in chunks, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import MeshConfig, parse_config
from flaxformer_lab.parsing import override
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.mesh import Mesh
from flaxformer_lab.training.parallelism import Pmap
from flaxformer_lab.training.single import Single
from flaxformer_lab.training.state import initial_state
from flaxformer_lab.training.step import make_evaluation_step, make_train_step

TREE = {
    "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": 8},
    "model": {"width": 16, "depth": 0, "causal": True},
    "optimizer": {"name": "sgd", "learning_rate": 0.5, "schedule": "constant", "clip_norm": 1.0},
    "training": {"batch_size": 8},
    "parallelism": {"strategy": "single"},
}
SYMBOLS = 37
WEIGHT = np.array([1, 0.5, 0, 2, 1, 1, 0.25, 1], np.float32)


def updates(strategy, chunk, accumulate=1, **changes):
    """Parameters after two updates, and the metrics of the last."""
    tree = TREE
    for key, value in changes.items():
        tree = override(tree, key, value)
    experiment = make_experiment(parse_config(tree), {"num_symbols": SYMBOLS}, strategy)
    parts = experiment.task, experiment.network, experiment.optimizer
    options = {"seed": 0, "accumulate": accumulate, "axis_name": strategy.axis_name, "loss_chunk": chunk}
    step = strategy.compile(make_train_step(*parts, **options), layout=experiment.layout)
    start = jax.device_get(jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))())
    state, random = strategy.place_state(start, experiment.layout), np.random.default_rng(1)
    for _ in range(2):
        batch = {
            "symbols": random.integers(0, SYMBOLS, (8, 9)).astype(np.uint8),
            "loss_weights": np.ones((8, 8), np.float32),
            "row": np.arange(8, dtype=np.int32),
            "example_weight": WEIGHT,
        }
        state, metrics = step(state, strategy.split(batch, 0))
    return strategy.fetch(state.params), strategy.fetch(metrics)


@pytest.fixture(scope="module")
def whole():
    """With all logits at once, on one device."""
    return updates(Single(), None)


def compare(found, expected, assert_close):
    assert_close(found[0], expected[0], 1e-5)
    for name, pair in expected[1].items():
        np.testing.assert_allclose(found[1][name], pair, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_is_that_of_the_whole_loss(whole, assert_close, accumulate):
    compare(updates(Single(), 6, accumulate), whole, assert_close)


def test_four_replicated_devices(whole, assert_close):
    compare(updates(Pmap(), 5), whole, assert_close)


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "sequence": 2}, {"data": 2, "tensor": 2}], ids=str)
def test_a_mesh_of_four_devices(whole, assert_close, sizes):
    compare(updates(Mesh(MeshConfig(**sizes)), 3), whole, assert_close)


def test_a_step_computes_logits_in_chunks_where_it_is_told_and_where_they_are_many():
    def program(chunk, tokens=8):
        config = parse_config(override(TREE, "task.sequence_length", tokens))
        experiment = make_experiment(config, {"num_symbols": 50304}, Single())
        arguments = experiment.task, experiment.network
        step = make_train_step(*arguments, experiment.optimizer, seed=0, loss_chunk=chunk)
        evaluate = make_evaluation_step(*arguments, seed=0, loss_chunk=chunk)
        batch = {
            "symbols": jax.ShapeDtypeStruct((8, tokens + 1), jnp.uint16),
            "loss_weights": jax.ShapeDtypeStruct((8, tokens), jnp.float32),
            "row": jax.ShapeDtypeStruct((8,), jnp.int32),
            "example_weight": jax.ShapeDtypeStruct((8,), jnp.float32),
        }
        state = experiment.abstract_state
        train = str(jax.make_jaxpr(step)(state, batch))
        return train, str(jax.make_jaxpr(evaluate)(state.params, state.model_state, batch))

    for text in program(None):
        assert "8,8,50304]" in text
    for text in program(16):
        assert "[16,50304]" in text and "8,8,50304]" not in text
    for text in program(None, tokens=4096):
        assert "[4096,50304]" in text and "8,4096,50304]" not in text
