"""Projections: what they own, how it starts, and which feature may reach which."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.model_config import AttentionConfig
from flaxformer_lab.modules.projection import PROJECTIONS, Dense, Diagonal, Identity, normal, ones, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read

AXES = (None, "width")
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 8)), jnp.float32)


def shapes(module):
    return {path[0]: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(module))}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "expected"), [(Dense, {"kernel": (8, 24)}), (Diagonal, {"scale": (24,)}), (Identity, {})]
)
def test_each_owns_what_it_says(kind, expected, bias):
    module = kind(8, 24, axes=AXES, bias=bias, rngs=Rngs(0))
    with_bias = bias and kind is not Identity
    assert shapes(module) == expected | ({"bias": (24,)} if with_bias else {})
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(module)))


def test_dense_mixes_all_features():
    module = Dense(8, 8, axes=AXES, bias=True, rngs=Rngs(0))
    module.bias[...] = jnp.arange(8.0)
    expected = np.asarray(X, np.float64) @ np.asarray(module.kernel[...], np.float64) + np.arange(8)
    np.testing.assert_allclose(module(X), expected, rtol=1e-5, atol=1e-5)


def test_diagonal_repeats_side_by_side_with_a_weight_of_its_own_each():
    module = Diagonal(8, 24, axes=AXES, bias=True, rngs=Rngs(0))
    module.scale[...], module.bias[...] = jnp.arange(24.0), jnp.arange(24.0) * 10
    y, x = np.asarray(module(X)), np.asarray(X)
    for feature in range(24):
        np.testing.assert_allclose(y[..., feature], x[..., feature % 8] * feature + 10 * feature, rtol=1e-6)


def test_identity_repeats_side_by_side():
    y = np.asarray(Identity(8, 16, axes=AXES, bias=True, rngs=Rngs(0))(X))
    np.testing.assert_array_equal(y[..., :8], X)
    np.testing.assert_array_equal(y[..., 8:], X)


def test_every_projection_of_the_config_is_there():
    hints = typing.get_type_hints(AttentionConfig)
    choices = {*typing.get_args(hints["projection"]), *typing.get_args(hints["output"])}
    assert choices == set(PROJECTIONS)


def test_normal_has_the_deviation_of_its_fan_in_and_no_tails():
    values = np.asarray(normal(Rngs(0), (100, 100), 25, AXES)[...])
    assert values.std() == pytest.approx(1 / 5, rel=0.03)
    assert abs(values.mean()) < 0.01
    assert np.abs(values).max() < 2 / 5 / 0.87962566  # two deviations of what was truncated
    assert np.abs(values).max() > 0.4


def test_constants_start_as_named_and_read_passes_over_what_is_not_there():
    assert zeros((2,), AXES[:1])[...].tolist() == [0, 0]
    assert ones((2,), AXES[:1])[...].tolist() == [1, 1]
    assert read(None) is None
    assert read(ones((1,), AXES[:1])).tolist() == [1]
