"""ResNet and ConvNeXt against loops in float64, and how far they see."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional import convolution, normalization
from flaxformer_lab.functional.platform import portable_forms

WIDTH = 8
RNG = np.random.default_rng(0)


def relu(x):
    return np.maximum(x, 0)


def convolve(x, kernel, size, stride):
    """A loop over positions and the offsets of a window, zeros beyond the edges."""
    rows, columns, features = x.shape[1:]
    weights = kernel.reshape(size, size, features, -1)
    y = np.zeros((len(x), -(-rows // stride), -(-columns // stride), weights.shape[-1]))
    for row, column in np.ndindex(*y.shape[1:3]):
        for i, j in itertools.product(range(size), repeat=2):
            at = row * stride + i - size // 2, column * stride + j - size // 2
            if 0 <= at[0] < rows and 0 <= at[1] < columns:
                y[:, row, column] += x[:, at[0], at[1]] @ weights[i, j]
    return y


def group_norm(x, groups, scale, bias, epsilon):
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias


def norm_of(kind, x, part, name):
    scale, bias = part[f"{name}.norm.scale"], part[f"{name}.norm.bias"]
    if kind == "batchnorm":
        return (x - part[f"{name}.norm.mean"]) / np.sqrt(part[f"{name}.norm.variance"] + 1e-5) * scale + bias
    return group_norm(x, 4, scale, bias, 1e-5)


def resnet(p, x, kind, block, depths, grid):
    """By the formula of each block."""
    x, number = x.reshape(len(x), *grid, -1), 0
    for stage, blocks in enumerate(depths):
        for place in range(blocks):
            part = {
                key.removeprefix(f"blocks.{number}."): v for key, v in p.items() if key.startswith(f"blocks.{number}.")
            }
            stride = 2 if stage and not place else 1
            sizes = [(3, stride), (3, 1)] if block == "basic" else [(1, 1), (3, stride), (1, 1)]
            y = x
            for n, (size, step) in enumerate(sizes):
                y = convolve(relu(y) if n else y, part[f"parts.{n}.convolution.map.kernel"], size, step)
                y = norm_of(kind, y, part, f"parts.{n}")
            if "shortcut.convolution.map.kernel" in part:
                x = convolve(x, part["shortcut.convolution.map.kernel"], 1, stride)
                x = norm_of(kind, x, part, "shortcut")
            x, number = relu(y + x), number + 1
    return x.reshape(len(x), -1, x.shape[-1])


@pytest.mark.parametrize(("kind", "block"), [("batchnorm", "basic"), ("groupnorm", "bottleneck")])
def test_resnet(body, kind, block):
    grid, depths = (4, 5), (1, 2)
    norm = {"kind": kind, "groups": 4}
    drawn = body({"name": "resnet", "width": WIDTH, "depths": depths, "block": block, "norm": norm}, grid)
    drawn = drawn.__class__(drawn.graph, jax.tree_util.tree_map_with_path(_positive_variance, drawn.params))
    x = RNG.normal(size=(2, 20, WIDTH)).astype(np.float32)
    expected = resnet(drawn.exact, x.astype(np.float64), kind, block, depths, grid)
    found = np.asarray(jax.jit(drawn.apply)(drawn.params, x))
    assert found.shape == (2, 6, WIDTH * 2 * (4 if block == "bottleneck" else 1))  # 2 x 3 positions
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def _positive_variance(path, leaf):
    return np.abs(leaf) if "variance" in jax.tree_util.keystr(path) else leaf


def test_convnext(body):
    drawn = body({"name": "convnext", "width": WIDTH, "depth": 1, "kernel_size": 3, "activation": "tanh"}, (3, 4))
    p, x = drawn.exact, RNG.normal(size=(2, 12, WIDTH))
    image, y = x.reshape(2, 3, 4, WIDTH), np.zeros((2, 3, 4, WIDTH)) + p["blocks.0.convolution.bias"]
    for row, column, i, j in itertools.product(range(3), range(4), range(-1, 2), range(-1, 2)):
        if 0 <= row + i < 3 and 0 <= column + j < 4:
            y[:, row, column] += image[:, row + i, column + j] * p["blocks.0.convolution.kernel"][i + 1, j + 1]
    layer = lambda y, name: (  # noqa: E731
        (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * p[f"{name}.scale"]
        + p[f"{name}.bias"]
    )
    dense = lambda y, name: y @ p[f"blocks.0.{name}.kernel"] + p[f"blocks.0.{name}.bias"]  # noqa: E731
    y = image + dense(np.tanh(dense(layer(y, "blocks.0.norm"), "up")), "down")
    expected = layer(y, "norm").reshape(x.shape)
    np.testing.assert_allclose(drawn(x.astype(np.float32)), expected, rtol=1e-3, atol=1e-4)


def test_group_norm_is_layer_norm_over_all_where_there_is_one_group():
    x = RNG.normal(size=(2, 6, WIDTH)).astype(np.float32)
    scale, bias = (RNG.normal(size=WIDTH).astype(np.float32) for _ in range(2))
    for groups in (1, 4):
        found = normalization.group_norm(jnp.asarray(x), groups, jnp.asarray(scale), jnp.asarray(bias), 1e-3)
        np.testing.assert_allclose(found, group_norm(x.astype(np.float64), groups, scale, bias, 1e-3), atol=1e-5)


def test_the_largest_of_each_neighbourhood():
    x = RNG.normal(size=(1, 5, 4, 2)).astype(np.float32) - 5  # below the zeros that must not be beyond the edges
    found = convolution.max_pool_2d(jnp.asarray(x), 3, 2)
    for row, column in itertools.product(range(3), range(2)):
        rows, columns = (slice(max(0, 2 * at - 1), 2 * at + 2) for at in (row, column))
        np.testing.assert_array_equal(found[0, row, column], x[0, rows, columns].max(axis=(0, 1)))


@pytest.mark.parametrize("size", [3, 4])
def test_a_depthwise_convolution_is_the_same_on_every_platform(size):
    x, kernel = RNG.normal(size=(2, 5, 4, 3)), RNG.normal(size=(size, size, 3))
    values_and_gradients = lambda: jax.jit(  # noqa: E731
        jax.value_and_grad(lambda *of: jnp.sum(jnp.sin(convolution.depthwise_2d(*of))), argnums=(0, 1))
    )(x.astype(np.float32), kernel.astype(np.float32))
    with portable_forms():
        expected = values_and_gradients()
    for one, other in zip(jax.tree.leaves(values_and_gradients()), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    half = jnp.asarray(x, jnp.bfloat16)
    assert convolution.depthwise_2d(half, kernel).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "knobs",
    [
        {"name": "resnet", "depths": (1,), "norm.kind": "layernorm", "activation": "tanh"},
        {"name": "convnext", "depth": 1, "kernel_size": 5, "activation": "tanh"},
    ],
    ids=str,
)
def test_the_reach_is_in_rows_and_columns(body, knobs):
    x = RNG.normal(size=(1, 49, WIDTH)).astype(np.float32)
    drawn = body(knobs | {"width": WIDTH}, (7, 7))
    jacobian = np.abs(drawn.jacobian(x)).max(axis=(1, 3))
    rows, columns = np.divmod(np.arange(49), 7)
    expected = parse_config({"model": _nested(knobs)}).model.reach
    seen = np.maximum(*(np.abs(np.subtract.outer(at, at)) for at in (rows, columns))) <= expected
    assert expected == 2
    np.testing.assert_array_equal(jacobian > 0, seen)


def _nested(knobs):
    tree = {key: value for key, value in knobs.items() if "." not in key}
    return tree | ({"norm": {"kind": knobs["norm.kind"]}} if "norm.kind" in knobs else {})
