"""The baselines against loops in float64, and what their gradients say about who sees whom."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from flaxformer_lab import registry
from flaxformer_lab.config import parse_config
from flaxformer_lab.models.bodies import make_body
from flaxformer_lab.modules.rngs import Rngs

TOKENS, WIDTH = 4, 8
LATER = np.triu(np.ones((TOKENS, TOKENS), bool), 1)  # [t, s] with s > t
SMALL = {
    "transformer": {"depth": 2, "attention.num_heads": 2},
    "mlp": {"depth": 2},
    "factorization_machine": {},
    "cnn_1d": {"depth": 2},
    "cnn_2d": {"depth": 2},
    "convnext": {"depth": 2, "expansion": 2.0},
    "lstm": {"depth": 2},
    "gru": {"depth": 2},
    "mixer": {"depth": 2, "token_hidden": 6, "expansion": 2.0},
}


@pytest.fixture
def make(body):
    """Makes a small model by its name; its grid is 2 x 2 where it needs one."""

    def make(name, **knobs):
        has_grid = registry.ask("model", name, "needs_grid")
        return body({"name": name} | SMALL[name] | knobs, (2, 2) if has_grid else (TOKENS,))

    return make


def by_tokens(jacobian):
    """The largest |d output[t] / d input[s]|: [t, s]."""
    return np.abs(jacobian).max(axis=(1, 3))


def layer_norm(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def relu(x):
    return np.maximum(x, 0)


def assert_close(result, expected):
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_every_model_of_the_config_is_there():
    elsewhere = {"encoder_decoder", "autoformer", "resnet", "timemixer", "field_products", "autoint"}  # have tests too
    assert set(registry.names("model")) == set(SMALL) | elsewhere


# ------------------------------------------------------------------------------------------- by their formulas


def test_mlp(make, stream):
    drawn = make("mlp", activation="tanh")
    x, p = stream.astype(np.float64), drawn.exact
    for layer in range(2):
        x = np.tanh(x @ p[f"layers.{layer}.kernel"] + p[f"layers.{layer}.bias"])
    assert_close(drawn(stream), x)


def test_factorization_machine(make, stream):
    drawn = make("factorization_machine")
    p = drawn.exact
    expected = stream @ p["linear.kernel"] + p["linear.bias"]
    for i, j in itertools.combinations(range(WIDTH), 2):
        expected += stream[..., i, None] * stream[..., j, None] * p["factors.kernel"][i] * p["factors.kernel"][j]
    assert_close(drawn(stream), expected)


def convolve(x, kernel, bias, offsets, grid):
    """A loop over positions of a grid and the offsets of a window, zeros beyond the edges."""
    weights = kernel.reshape(len(offsets), WIDTH, WIDTH)
    x = x.reshape(-1, *grid, WIDTH)
    y = np.zeros_like(x) + bias
    for place in np.ndindex(*grid):
        for offset, weight in zip(offsets, weights, strict=True):
            other = tuple(np.add(place, offset))
            if all(0 <= at < size for at, size in zip(other, grid, strict=True)):
                y[:, *place] += x[:, *other] @ weight
    return y.reshape(len(x), -1, WIDTH)


@pytest.mark.parametrize(
    ("name", "knobs", "offsets"),
    [
        ("cnn_1d", {"causal": False}, [(-1,), (0,), (1,)]),
        ("cnn_1d", {"causal": True}, [(-2,), (-1,), (0,)]),
        ("cnn_1d", {"kernel_size": 2}, [(-1,), (0,)]),
        ("cnn_2d", {}, list(itertools.product((-1, 0, 1), repeat=2))),
    ],
    ids=["centred", "causal", "even", "grid"],
)
def test_convolutions(make, stream, name, knobs, offsets):
    drawn = make(name, activation="relu", **knobs)
    grid = (2, 2) if name == "cnn_2d" else (TOKENS,)
    x, p = stream.astype(np.float64), drawn.exact
    for block in range(2):
        part = {key.removeprefix(f"blocks.{block}."): leaf for key, leaf in p.items()}
        y = layer_norm(x, p[f"blocks.{block}.norm.scale"], p[f"blocks.{block}.norm.bias"])
        y = relu(convolve(y, part["first.map.kernel"], part["first.map.bias"], offsets, grid))
        x = x + convolve(y, part["second.map.kernel"], part["second.map.bias"], offsets, grid)
    assert_close(drawn(stream), layer_norm(x, p["norm.scale"], p["norm.bias"]))


def test_lstm(make, stream):
    drawn = make("lstm")
    x, p = stream.astype(np.float64), drawn.exact
    for layer in range(2):
        inputs = x @ p[f"layers.{layer}.input.kernel"] + p[f"layers.{layer}.input.bias"]
        h = c = np.zeros((2, WIDTH))
        for t in range(TOKENS):
            i, f, g, o = np.split(inputs[:, t] + h @ p[f"layers.{layer}.state.kernel"], 4, axis=1)
            c = expit(f) * c + expit(i) * np.tanh(g)
            h = expit(o) * np.tanh(c)
            x[:, t] = h
    assert_close(drawn(stream), x)


@pytest.mark.parametrize("bias", [True, False])
def test_gru(make, stream, bias):
    drawn = make("gru", bias=bias)
    x, p = stream.astype(np.float64), drawn.exact
    for layer in range(2):
        inputs = x @ p[f"layers.{layer}.input.kernel"] + p.get(f"layers.{layer}.input.bias", 0)
        h = np.zeros((2, WIDTH))
        for t in range(TOKENS):
            (r, z, n), (hr, hz, hn) = (
                np.split(y, 3, axis=1) for y in (inputs[:, t], h @ p[f"layers.{layer}.state.kernel"])
            )
            n = np.tanh(n + expit(r + hr) * (hn + p.get(f"layers.{layer}.candidate_bias", 0)))
            h = (1 - expit(z + hz)) * n + expit(z + hz) * h
            x[:, t] = h
    assert_close(drawn(stream), x)
    assert bias == any("bias" in path for path in p)


def test_mixer(make, stream):
    drawn = make("mixer", activation="tanh")
    x, p = stream.astype(np.float64), drawn.exact
    for block in range(2):
        part = {key.removeprefix(f"blocks.{block}."): leaf for key, leaf in p.items()}
        dense = lambda y, name, part=part: y @ part[f"{name}.kernel"] + part[f"{name}.bias"]  # noqa: E731
        y = layer_norm(x, part["token_norm.scale"], part["token_norm.bias"]).swapaxes(1, 2)
        x = x + dense(np.tanh(dense(y, "token_up")), "token_down").swapaxes(1, 2)
        y = layer_norm(x, part["feature_norm.scale"], part["feature_norm.bias"])
        x = x + dense(np.tanh(dense(y, "feature_up")), "feature_down")
    assert p["blocks.0.token_up.kernel"].shape == (TOKENS, 6)
    assert p["blocks.0.feature_up.kernel"].shape == (WIDTH, 2 * WIDTH)
    assert_close(drawn(stream), layer_norm(x, p["norm.scale"], p["norm.bias"]))


def test_the_forget_gate_of_an_lstm_starts_open():
    config = parse_config({"model": {"name": "lstm", "width": WIDTH, "depth": 1}}).model
    for layer in make_body(config, grid=(TOKENS,), rngs=Rngs(0)).layers:
        np.testing.assert_array_equal(
            np.split(layer.input.bias[...], 4), np.array([[0], [1], [0], [0]]) * np.ones(WIDTH)
        )


# ------------------------------------------------------------------------------------------- what reaches what


@pytest.mark.parametrize(("name", "knobs"), [("cnn_1d", {"causal": True}), ("lstm", {}), ("gru", {})])
def test_causal_models_see_the_past_alone(make, stream, name, knobs):
    reach = by_tokens(make(name, **knobs).jacobian(stream))
    assert np.all(reach[LATER] == 0)
    assert np.all(reach[~LATER] > 1e-6)


@pytest.mark.parametrize("name", ["mlp", "factorization_machine"])
def test_models_of_each_token_alone(make, stream, name):
    reach = by_tokens(make(name).jacobian(stream))
    assert np.all(reach[~np.eye(TOKENS, dtype=bool)] == 0)
    assert np.all(np.diag(reach) > 1e-6)


@pytest.mark.parametrize(("name", "knobs"), [("mixer", {"depth": 1}), ("cnn_1d", {}), ("cnn_2d", {})])
def test_all_tokens_see_one_another(make, stream, name, knobs):
    assert np.all(by_tokens(make(name, **knobs).jacobian(stream)) > 1e-6)


LINE = np.random.default_rng(1).normal(size=(1, 13, WIDTH)).astype(np.float32)
SQUARE = np.random.default_rng(1).normal(size=(1, 49, WIDTH)).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel_size", "depth", "causal", "dilation"),
    [
        (1, 2, False, 1),
        (2, 1, False, 1),
        (3, 1, False, 1),
        (3, 2, False, 1),
        (5, 1, False, 1),
        (1, 2, True, 1),
        (3, 1, True, 1),
        (4, 1, True, 1),
        (3, 2, False, 2),
        (2, 2, True, 2),
    ],
)
def test_the_reach_of_a_convolution_is_the_one_that_its_config_says(body, kernel_size, depth, causal, dilation):
    knobs = {"name": "cnn_1d", "kernel_size": kernel_size, "depth": depth, "causal": causal, "activation": "tanh"}
    knobs["dilation"] = dilation
    jacobian = by_tokens(body(knobs, (13,)).jacobian(LINE))
    expected = parse_config({"model": knobs}).model.reach
    distance = np.subtract.outer(np.arange(13), np.arange(13))  # how far s is before t
    apart = sum(dilation**block for block in range(depth))
    ahead = 0 if causal else 2 * apart * ((kernel_size - 1) // 2)
    seen = (-ahead <= distance) & (distance <= expected)
    assert np.all(jacobian[~seen] == 0)
    assert np.all(jacobian[seen] > 0)
    assert expected < 12, "all tokens would be seen in any case"


def test_the_reach_of_a_convolution_over_a_grid_is_in_rows_and_columns(body):
    knobs = {"name": "cnn_2d", "depth": 1, "activation": "tanh"}
    jacobian = by_tokens(body(knobs, (7, 7)).jacobian(SQUARE))
    rows, columns = np.divmod(np.arange(49), 7)
    expected = parse_config({"model": knobs}).model.reach
    seen = np.maximum(*(np.abs(np.subtract.outer(at, at)) for at in (rows, columns))) <= expected
    assert expected == 2
    np.testing.assert_array_equal(jacobian > 0, seen)


# ------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize(("name", "knobs"), [("cnn_1d", {"kernel_size": 5}), ("cnn_2d", {}), ("mixer", {})])
def test_padding_is_not_seen(make, stream, name, knobs):
    seen = np.array([True, False, True, True])
    drawn = make(name, **knobs)
    reach = by_tokens(drawn.jacobian(stream, valid=jnp.asarray(seen[None])))
    assert np.all(reach[np.ix_(seen, ~seen)] == 0)
    assert np.all(reach[np.ix_(seen, seen)] > 1e-6)
    assert np.any(by_tokens(drawn.jacobian(stream))[np.ix_(seen, ~seen)] > 1e-6)


@pytest.mark.parametrize(("name", "knobs"), [("cnn_1d", {}), ("cnn_1d", {"causal": True}), ("lstm", {}), ("mlp", {})])
def test_a_sequence_without_its_padding_gives_the_same(make, stream, name, knobs):
    drawn = make(name, **knobs)
    valid = jnp.array([[True, True, False, False]] * 2)
    np.testing.assert_allclose(drawn(stream, valid=valid)[:, :2], drawn(stream[:, :2]), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- what all share

NAMES = [name for name in SMALL if name != "transformer"]


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_a_batch_do_not_meet(make, stream, name):
    drawn, other = make(name), stream.copy()
    other[0] = -other[0, ::-1]
    assert np.any(drawn(other)[0] != drawn(stream)[0])
    np.testing.assert_array_equal(drawn(other)[1], drawn(stream)[1])


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_are_what_goes_in_and_what_comes_out_of_each_layer(make, stream, name):
    drawn = make(name)
    intermediates = drawn.intermediates(stream)
    part = "layers" if name in ("mlp", "lstm", "gru") else "blocks"
    layers = [] if name == "factorization_machine" else [f"{part}.{number}.output" for number in range(2)]
    assert set(intermediates) == {"input", *layers, "output"}
    np.testing.assert_array_equal(intermediates["input"], stream)
    np.testing.assert_array_equal(intermediates["output"], drawn(stream))
    if layers:
        first = make(name, depth=1).intermediates(stream)
        np.testing.assert_allclose(intermediates[layers[0]], first[layers[0]], rtol=1e-5, atol=1e-5)
        assert np.abs(intermediates[layers[1]] - intermediates[layers[0]]).max() > 1e-3


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("cnn_1d", "lstm") else pytest.mark.slow) for name in NAMES]
)
def test_half_precision_is_close_to_float32(make, stream, name):
    exact, half = make(name)(stream), make(name, dtype="bfloat16")
    result = half(stream.astype(jnp.dtype("bfloat16")))
    assert result.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.params))
    assert 0 < np.abs(result.astype(np.float32) - exact).max() < 4e-2 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        *((name, {"depth": depth}) for name in NAMES if name != "factorization_machine" for depth in (0, 1)),
        *((name, {"bias": False}) for name in NAMES),
        *((name, {"activation": "relu"}) for name in ("mlp", "cnn_1d", "cnn_2d", "mixer")),
        *((name, {"norm.kind": kind}) for name in ("cnn_1d", "mixer") for kind in ("rmsnorm", "off")),
        *((name, {"norm.epsilon": 0.1}) for name in ("cnn_2d", "mixer")),
        *((name, {"kernel_size": 2}) for name in ("cnn_1d", "cnn_2d")),
        ("cnn_1d", {"causal": True}),
        ("cnn_2d", {"position": "learned"}),
        ("convnext", {"kernel_size": 2}),
        ("convnext", {"expansion": 1.0}),
        ("mixer", {"token_hidden": 3}),
        ("mixer", {"expansion": 1.0}),
    ],
    ids=str,
)
def test_every_knob_changes_the_output(make, stream, name, knobs):
    """Parameters of one name and shape are the same on both sides, so the difference is the knob's."""
    difference = np.abs(make(name, **knobs)(stream) - make(name)(stream))
    assert np.all(difference.max(axis=(1, 2)) > 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_matters(make, stream, name):
    drawn = make(name, **({} if name == "factorization_machine" else {"depth": 1}))
    loss = lambda params: jnp.sum(drawn.apply(params, jnp.asarray(stream)) ** 3)  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(drawn.params)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
