"""Feed-forward modules against float64 NumPy, from the parameters that they own."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.special import expit

from flaxformer_lab.model_config import FeedForwardConfig, TransformerConfig
from flaxformer_lab.modules.feedforward import make_feed_forward
from flaxformer_lab.modules.rngs import AbstractRngs, Rngs

WIDTH = 8
X = np.random.default_rng(0).normal(size=(2, 4, WIDTH))


@pytest.fixture
def make(draw_module):
    """Makes a module with drawn parameters, and these in float64."""

    def make(kind, *, activation="silu", expansion=1.5, bias=True, **maps):
        ffn = FeedForwardConfig(kind=kind, activation=activation, expansion=expansion, **maps)
        config = TransformerConfig(width=WIDTH, ffn=ffn, bias=bias)
        drawn = draw_module(lambda: make_feed_forward(config, AbstractRngs()))
        return drawn.module, drawn.exact

    return make


def silu(x):
    return x * expit(x)


def run(module):
    return module(jnp.asarray(X, jnp.float32))


@pytest.mark.parametrize("bias", [True, False])
def test_mlp(make, bias):
    module, p = make("mlp", bias=bias)
    assert p["up.kernel"].shape == (8, 12)
    expected = silu(X @ p["up.kernel"] + p.get("up.bias", 0)) @ p["down.kernel"] + p.get("down.bias", 0)
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-4)
    assert ("up.bias" in p) == ("down.bias" in p) == bias


@pytest.mark.parametrize("kind", ["gated", "bilinear"])
def test_gated_and_bilinear(make, kind):
    module, p = make(kind)
    assert p["gate.kernel"].shape == p["up.kernel"].shape == (8, 12)
    a, b = (X @ p[f"{name}.kernel"] + p[f"{name}.bias"] for name in ("gate", "up"))
    expected = ((silu(a) if kind == "gated" else a) * b) @ p["down.kernel"] + p["down.bias"]
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "gated"])
def test_maps_of_blocks(make, kind):
    """Both maps have the same blocks, which keeps them apart through the hidden units."""
    module, p = make(kind, projection="block", block_size=4)
    up, down = (block_diag(*p[f"{name}.kernel"]) for name in ("up", "down"))
    hidden = X @ up + p["up.bias"]
    hidden = silu(hidden) if kind == "mlp" else silu(X @ block_diag(*p["gate.kernel"]) + p["gate.bias"]) * hidden
    assert up.shape == (8, 12) and p["up.kernel"].shape == (2, 4, 6)
    np.testing.assert_allclose(run(module), hidden @ down + p["down.bias"], rtol=1e-4, atol=1e-4)


def test_maps_of_low_rank(make):
    module, p = make("mlp", projection="low_rank", rank=2)
    up, down = (p[f"{name}.down.kernel"] @ p[f"{name}.up.kernel"][0] for name in ("up", "down"))
    assert np.linalg.matrix_rank(up) == 2 and up.shape == (8, 12)
    expected = silu(X @ up + p["up.bias"]) @ down + p["down.bias"]
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_diagonal(make, bias):
    module, p = make("diagonal", expansion=3.0, bias=bias)
    expected = np.zeros(X.shape)
    for c in range(WIDTH):
        hidden = silu(X[..., c, None] * p["up"][c] + (p["up_bias"][c] if bias else 0))
        expected[..., c] = hidden @ p["down"][c] + (p["down_bias"][c] if bias else 0)
    assert p["up"].shape == (8, 3)
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-4)


def test_identity_activation_leaves_one_linear_map(make):
    module, p = make("mlp", activation="identity", bias=False)
    np.testing.assert_allclose(run(module), X @ (p["up.kernel"] @ p["down.kernel"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "expansion", "hidden"), [("mlp", 8 / 3, 21), ("gated", 8 / 3, 21), ("mlp", 0.01, 1), ("diagonal", 0.1, 1)]
)
def test_hidden_units_are_rounded_and_never_none(make, kind, expansion, hidden):
    _, p = make(kind, expansion=expansion)
    assert p["up" if kind == "diagonal" else "up.kernel"].shape == (WIDTH, hidden)
    assert p["down" if kind == "diagonal" else "down.kernel"].size == WIDTH * hidden


def test_off_is_nothing():
    assert make_feed_forward(TransformerConfig(ffn=FeedForwardConfig(kind="off")), Rngs(0)) is None
