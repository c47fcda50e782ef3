import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from flaxformer_lab.training.state import RngStream, State, initial_state, stream_key


@pytest.fixture(scope="module")
def network(make_case):
    return make_case("images").network


def bits(key):
    return tuple(jax.random.key_data(key).tolist())


def test_a_fresh_state_has_step_0(network):
    state = initial_state(network, optax.adam(0.1), 0)
    assert state.step == 0 and state.step.dtype == np.int32 and state.step.shape == ()


def test_a_state_is_a_pytree_of_step_params_model_state_and_optimizer_state(network):
    state = initial_state(network, optax.sgd(0.1, momentum=0.9), 0)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert [field.name for field in dataclasses.fields(State)] == ["step", "params", "model_state", "opt_state"]
    assert paths[:3] == [".step", ".params['head']['bias']", ".params['head']['kernel']"]
    assert all(path.startswith(".opt_state") for path in paths[3:]) and len(paths) == 5
    assert jax.tree.map(lambda leaf: leaf + 1, state).step == 1


def test_shapes_are_known_without_making_the_state(network):
    abstract = jax.eval_shape(lambda: initial_state(network, optax.adam(0.1), 0))
    real = initial_state(network, optax.adam(0.1), 0)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), real
    )


def test_the_seed_decides_the_parameters(network):
    kernels = [initial_state(network, optax.sgd(0.1), seed).params["head"]["kernel"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_every_seed_stream_and_step_has_a_key_of_its_own():
    uses = list(itertools.product((0, 1, 2**32 - 1), RngStream, (0, 1, 2, 100_000)))
    assert len({bits(stream_key(*use)) for use in uses}) == len(uses)


def test_a_key_is_the_same_for_a_step_inside_a_compiled_program():
    compiled = jax.jit(lambda step: stream_key(7, RngStream.DROPOUT, step))
    assert bits(compiled(np.int32(12))) == bits(stream_key(7, RngStream.DROPOUT, 12))


def test_streams_never_change_their_numbers():
    assert {stream.name: int(stream) for stream in RngStream} == {"INIT": 0, "PREPARE": 1, "DROPOUT": 2, "EVALUATE": 3}
    # A checkpoint of today goes on with the same draws tomorrow.
    assert bits(stream_key(7, RngStream.PREPARE, 3)) == (2645361454, 4044176579)
