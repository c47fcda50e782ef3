"""Norms, selected by name."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.model_config import NormConfig, TransformerConfig
from flaxformer_lab.modules.norm import make_norm

X = np.random.default_rng(0).normal(size=(2, 4, 8))


def make(kind, *, bias=True, epsilon=1e-6):
    return make_norm(TransformerConfig(width=8, norm=NormConfig(kind=kind, epsilon=epsilon), bias=bias))


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_layernorm(epsilon):
    norm = make("layernorm", epsilon=epsilon)
    norm.scale[...], norm.bias[...] = jnp.arange(8.0), jnp.arange(8.0) / 2
    centred = X - X.mean(-1, keepdims=True)
    expected = centred / np.sqrt(X.var(-1, keepdims=True) + epsilon) * np.arange(8) + np.arange(8) / 2
    np.testing.assert_allclose(norm(jnp.asarray(X, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_rmsnorm(epsilon):
    norm = make("rmsnorm", epsilon=epsilon)
    norm.scale[...] = jnp.arange(8.0)
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + epsilon) * np.arange(8)
    np.testing.assert_allclose(norm(jnp.asarray(X, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_srmsnorm(epsilon):
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + epsilon)
    result = make("srmsnorm", epsilon=epsilon)(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_another_kind_and_another_number_of_features_on_request():
    config = TransformerConfig(width=8, norm=NormConfig(kind="layernorm"))
    norm = make_norm(config, kind="rmsnorm", features=12)
    assert {name: leaf.shape for name, leaf in nnx.to_pure_dict(nnx.state(norm)).items()} == {"scale": (12,)}
    assert make_norm(config, kind="off") is None


@pytest.mark.parametrize(
    ("kind", "bias", "expected"),
    [
        ("layernorm", True, {"scale", "bias"}),
        ("layernorm", False, {"scale"}),
        ("rmsnorm", True, {"scale"}),
        ("rmsnorm", False, {"scale"}),
        ("srmsnorm", True, set()),
    ],
)
def test_parameters(kind, bias, expected):
    state = nnx.to_pure_dict(nnx.state(make(kind, bias=bias)))
    assert set(state) == expected
    assert all(leaf.shape == (8,) for leaf in state.values())
    assert "scale" not in expected or state["scale"].tolist() == [1] * 8


def test_off_is_nothing():
    assert make("off") is None
