"""Programs traced once for a CPU, a CUDA GPU and a TPU, by `jax.export`: the portable form of each part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.tasks import make_task
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.state import initial_state
from flaxformer_lab.training.step import make_train_step

PLATFORMS = ("cpu", "cuda", "tpu")
ATTENTIONS = ("softmax", "linear", "lightning", "channel", "mean", "static", "off")
FACTS = {"num_symbols": 11}
SYMBOLS = np.arange(18, dtype=np.uint8).reshape(2, 9) % 11


def with_attention(kind):
    """The config; channel attention cannot be causal."""
    causal = kind != "channel"
    model = {"width": 8, "depth": 1, "attention": {"kind": kind, "num_heads": 2}, "causal": causal}
    task = {"tokenizer": "bytes", "sequence_length": 8, "objective": "next_token" if causal else "masked"}
    tree = {"task": task | {"name": "language_modelling"}, "model": model, "parallelism": {"strategy": "single"}}
    return parse_config(tree)


def exported(function, *arguments):
    """The function as one program for all platforms."""
    program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert program.platforms == PLATFORMS
    return program.call


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_the_forward_pass(kind, draw):
    config = with_attention(kind)
    network = make_task(config.task, FACTS).network(config.model)
    arguments = (*map(draw, network.shapes), jnp.asarray(SYMBOLS[:, :8], jnp.int32))
    expected, _ = network.apply(*arguments)
    np.testing.assert_allclose(exported(network.apply, *arguments)(*arguments)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_train_step():
    experiment = make_experiment(with_attention("softmax"), FACTS)
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    weights, rows = np.ones((2, 8), np.float32), np.arange(2, dtype=np.int32)
    batch = {"symbols": SYMBOLS, "loss_weights": weights, "row": rows, "example_weight": weights[:, 0]}
    step = make_train_step(experiment.task, experiment.network, experiment.optimizer, seed=0)
    results = exported(step, state, batch)(state, batch), jax.jit(step)(state, batch)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6), *results)
