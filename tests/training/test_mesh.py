"""One program over a mesh of four devices: the figures of one device, in less memory."""

import dataclasses

import jax
import numpy as np
import pytest

from flaxformer_lab.config import MeshConfig, ParallelismConfig
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.training.mesh import Mesh
from flaxformer_lab.training.parallelism import make_strategy
from flaxformer_lab.training.programs import make_evaluate, make_experiment, make_feeds, make_run_steps
from flaxformer_lab.training.state import initial_state

MESHES = {
    "data=4": {"data": 4},
    "fsdp=4": {"fsdp": 4},
    "data=2 fsdp=2": {"data": 2, "fsdp": 2},
    "tensor=2 data=2": {"tensor": 2},
    "tensor=2 fsdp=2": {"tensor": 2, "fsdp": 2},
}


@pytest.fixture(scope="module")
def whole(rich):
    """Dropout, moved images, Muon, warm-up and accumulation, on one device."""
    return rich({"training.steps": 20, "training.batch_size": 32, "model.width": 16})


def on_mesh(config, **sizes):
    return dataclasses.replace(config, parallelism=ParallelismConfig("mesh", MeshConfig(**sizes)))


def trained(config, steps=20):
    """The state after some updates, each one's loss, and the figures of validation."""
    experiment = make_experiment(config)
    strategy, examples = experiment.strategy, experiment.task.examples("train")
    start = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, config.seed))()
    state, losses = strategy.place_state(start, experiment.network.axes), []
    run_steps, data = make_run_steps(experiment, examples)
    data, plan = strategy.place(data), [(begin, 5) for begin in range(0, steps, 5)]
    for feed in make_feeds(experiment, examples, plan):
        state, history = run_steps(state, data, feed, strategy.place(np.int32(5)))
        total, weight = strategy.fetch(history)["loss"]
        losses.extend(total / weight)
    figures = make_evaluate(experiment)(state.params, state.model_state, experiment.task.examples("validation"))
    return state, losses, figures


@pytest.fixture(scope="module")
def alone(whole):
    """What one device makes of it."""
    return trained(whole)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_a_mesh_trains_like_one_device(whole, alone, sizes, assert_close):
    state, losses, figures = trained(on_mesh(whole, **sizes))
    np.testing.assert_allclose(losses, alone[1], atol=1e-5)
    assert_close(state, alone[0], 1e-5)
    for name, value in alone[2].items():
        assert figures[name] == pytest.approx(value, abs=1e-5)


def shares(state, name):
    """The shape of what one device holds of a parameter."""
    leaf = state.params["body"]["blocks"][0]
    for key in name.split("."):
        leaf = leaf[key]
    return leaf.addressable_shards[0].data.shape


def test_parameters_lie_where_the_table_says(whole):
    experiment = make_experiment(on_mesh(whole, tensor=2, fsdp=2))
    start = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    state = experiment.strategy.place_state(start, experiment.network.axes)
    assert shares(state, "attention.projection.kernel") == (8, 24)  # of [16, 48]
    assert shares(state, "attention.output.kernel") == (8, 8)  # of [16, 16]
    assert shares(state, "ffn.up.kernel") == (8, 16)  # of [16, 32]
    assert shares(state, "attention_norm.scale") == (16,)  # vectors of the width stay whole


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, "parallelism.mesh: fsdp=3 x tensor=1 do not make 4 devices"),
        ({"data": 2, "fsdp": 4}, "data=2 x fsdp=4 x tensor=1 do not make 4 devices"),
        ({"data": 2}, "data=2 x fsdp=1 x tensor=1 do not make 4 devices"),
    ],
)
def test_sizes_that_do_not_make_the_devices_are_refused(whole, sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_strategy(on_mesh(whole, **sizes))


def test_what_cannot_be_shared_equally_is_named(rich):
    config = rich({"model.width": 6, "model.attention.num_heads": 1})
    experiment = make_experiment(on_mesh(config, fsdp=4))
    with pytest.raises(
        ConfigError, match=r"mesh.fsdp=4 does not divide the axis width=6 of .*; choose one of 1, 2, 3, 6"
    ):
        _ = experiment.layout


def test_a_mesh_is_chosen_where_one_is_asked_for(rich):
    assert type(make_strategy(rich({"parallelism.strategy": "auto", "parallelism.mesh.fsdp": 2}))) is Mesh
    with pytest.raises(ConfigError, match=r"mesh\.fsdp=2 needs parallelism\.strategy=mesh or auto, not pmap"):
        rich({"parallelism.strategy": "pmap", "parallelism.mesh.fsdp": 2})
