"""Projections: what they own, how it starts, and which feature may reach which."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.model_config import AttentionConfig
from flaxformer_lab.modules.projection import (
    PROJECTIONS,
    Block,
    Dense,
    Diagonal,
    Identity,
    LowRank,
    Monarch,
    normal,
    ones,
    zeros,
)
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


# ---------------------------------------------------------------------------------- between diagonal and dense

STRUCTURED = {"block": {"blocks": 4}, "low_rank": {"rank": 2}, "monarch": {"blocks": 4}}
STRUCTURED |= {"hadamard": {}, "fourier": {}}


def shapes_of(module):
    return {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(module))}


def jacobian(module, features):
    return np.asarray(jax.jit(jax.jacrev(lambda x: module(x[None])[0]))(np.ones(features, np.float32)))


@pytest.mark.parametrize(
    ("kind", "knobs", "expected"),
    [
        (Block, {"blocks": 4}, {"kernel": (4, 2, 6)}),
        (LowRank, {"rank": 2}, {"down.kernel": (8, 6), "up.kernel": (3, 2, 8)}),
        (Monarch, {"blocks": 4}, {"first.kernel": (4, 2, 6), "second.kernel": (6, 4, 4)}),
    ],
)
def test_each_part_of_a_structured_map_has_matrices_of_its_own(kind, knobs, expected):
    module = kind(8, 24, axes=AXES, parts=3, groups=2, bias=True, rngs=Rngs(0), **knobs)
    assert shapes_of(module) == expected | {"bias": (24,)}


@pytest.mark.parametrize(("kind", "knobs"), STRUCTURED.items())
def test_parts_are_interleaved_group_by_group(kind, knobs):
    """As heads are: query, key and value of a head side by side."""
    make = lambda groups: PROJECTIONS[kind](8, 24, axes=AXES, parts=3, groups=groups, bias=False, rngs=Rngs(0), **knobs)  # noqa: E731
    one_by_one = np.asarray(make(1)(X)).reshape(2, 4, 3, 2, 4)  # part, group, feature
    np.testing.assert_array_equal(make(2)(X), np.moveaxis(one_by_one, 2, 3).reshape(2, 4, 24))


def test_a_block_reaches_its_own_outputs_in_every_part():
    module = Block(8, 24, axes=AXES, blocks=4, parts=3, groups=1, bias=True, rngs=Rngs(0))
    moved = jacobian(module, 8) != 0
    np.testing.assert_array_equal(moved, np.tile(np.kron(np.eye(4), np.ones((2, 2))), (3, 1)))


@pytest.mark.parametrize("rank", [1, 3])
def test_each_part_has_the_rank_that_it_is_given(rank):
    module = LowRank(8, 24, axes=AXES, rank=rank, parts=3, bias=True, rngs=Rngs(0))
    found = jacobian(module, 8)
    assert [np.linalg.matrix_rank(part, tol=1e-4) for part in np.split(found, 3)] == [rank] * 3
    assert np.linalg.matrix_rank(found, tol=1e-4) == min(8, 3 * rank)  # the parts see different sums


@pytest.mark.parametrize(("features_in", "features_out"), [(64, 64), (64, 256), (256, 64)])
@pytest.mark.parametrize(("kind", "knobs"), {**STRUCTURED, "dense": {}, "diagonal": {}}.items())
def test_the_variance_of_the_features_stays(kind, knobs, features_in, features_out):
    if kind in ("hadamard", "fourier", "diagonal") and features_in != features_out:
        return
    x = jnp.asarray(np.random.default_rng(1).normal(size=(64, features_in)), jnp.float32)
    outputs = [
        PROJECTIONS[kind](features_in, features_out, axes=AXES, bias=True, rngs=Rngs(seed), **knobs)(x)
        for seed in range(8)
    ]
    # A rank of 2 leaves few independent sums, so their mean square scatters.
    assert np.mean(np.square(outputs)) == pytest.approx(1, rel=0.4 if kind == "low_rank" else 0.15)


@pytest.mark.parametrize(("kind", "knobs"), {**STRUCTURED, "dense": {}, "diagonal": {}, "identity": {}}.items())
def test_whether_features_mix_is_what_the_class_says(kind, knobs):
    moved = jacobian(PROJECTIONS[kind](8, 8, axes=AXES, bias=True, rngs=Rngs(0), **knobs), 8) != 0
    assert PROJECTIONS[kind].mixes_features(2) == moved[~np.eye(8, dtype=bool)].any()


def test_a_block_of_one_feature_is_diagonal():
    moved = jacobian(Block(8, 8, axes=AXES, blocks=8, bias=True, rngs=Rngs(0)), 8) != 0
    assert not Block.mixes_features(1) and not moved[~np.eye(8, dtype=bool)].any()


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
