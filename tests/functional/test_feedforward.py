"""Feature mixing against SciPy's formulas and naive loops."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, ndtr

from flaxformer_lab.functional import feedforward
from flaxformer_lab.functional.feedforward import ACTIVATIONS, gate, per_feature_mlp
from flaxformer_lab.model_config import FeedForwardConfig

FORMULAS = {
    "gelu": lambda x: x * ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.where(x > 0, x, 0),
    "silu": lambda x: x * expit(x),
    "tanh": lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1),
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_follows_its_formula(name):
    x = np.linspace(-6, 6, 97)
    result = jax.jit(ACTIVATIONS[name])(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, FORMULAS[name](x), rtol=1e-5, atol=1e-6)


def test_every_activation_of_the_config_is_there():
    assert set(typing.get_args(typing.get_type_hints(FeedForwardConfig)["activation"])) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ["silu", "identity"])
def test_gate_multiplies_what_is_activated_with_what_is_not(name):
    a, b = np.random.default_rng(0).normal(size=(2, 2, 3, 4))
    run = jax.jit(lambda a, b: gate(a, b, ACTIVATIONS[name]))
    result = run(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(result, FORMULAS[name](a) * b, rtol=1e-5, atol=1e-6)


def test_per_feature_mlp_follows_its_formula_and_keeps_features_apart():
    generator = np.random.default_rng(0)
    x, up, up_bias, down = (generator.normal(size=shape) for shape in ((2, 3), (3, 5), (3, 5), (3, 5)))
    down_bias = generator.normal(size=3)
    parameters = [jnp.asarray(array, jnp.float32) for array in (up, up_bias, down, down_bias)]
    run = lambda x: per_feature_mlp(x, *parameters, ACTIVATIONS["tanh"])  # noqa: E731
    expected = np.zeros_like(x)
    for row, c in np.ndindex(x.shape):
        hidden = [down[c, h] * np.tanh(up[c, h] * x[row, c] + up_bias[c, h]) for h in range(5)]
        expected[row, c] = sum(hidden) + down_bias[c]
    np.testing.assert_allclose(jax.jit(run)(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-6)
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda one: run(one[None])[0]))(jnp.asarray(x[0], jnp.float32)))
    assert np.all(np.diag(jacobian) != 0)
    assert np.all(jacobian[~np.eye(3, dtype=bool)] == 0)


def test_per_feature_mlp_without_biases():
    x, up, down = jnp.array([[2.0, -1.0]]), jnp.array([[1.0, 3.0], [0.5, -2.0]]), jnp.array([[1.0, 1.0], [4.0, 0.5]])
    result = jax.jit(lambda x: per_feature_mlp(x, up, None, down, None, ACTIVATIONS["relu"]))(x)
    assert result.tolist() == [[2 * 1 + 6 * 1, 0 * 4 + 2 * 0.5]]


def test_gelu_by_tanh_as_gpus_and_tpus_compute_it(monkeypatch):
    """Value, slope and curvature against the formula in float64; the curvature is the difference of slopes."""
    monkeypatch.setattr(feedforward, "target_platform", lambda: "gpu")
    x = np.linspace(-6, 6, 97)

    def by_hand(x):
        scale = np.sqrt(2 / np.pi)
        t = np.tanh(scale * (x + 0.044715 * x**3))
        return x * (1 + t) / 2, (1 + t) / 2 + x / 2 * (1 - t**2) * scale * (1 + 3 * 0.044715 * x**2)

    one, gelu = jnp.asarray(x, jnp.float32), feedforward.ACTIVATIONS["gelu_tanh"]
    slope = jax.grad(lambda x: jnp.sum(gelu(x)))
    np.testing.assert_allclose(gelu(one), by_hand(x)[0], atol=1e-6)
    np.testing.assert_allclose(slope(one), by_hand(x)[1], atol=1e-6)
    curvature = (by_hand(x + 1e-5)[1] - by_hand(x - 1e-5)[1]) / 2e-5
    np.testing.assert_allclose(jax.jvp(slope, (one,), (jnp.ones_like(one),))[1], curvature, atol=1e-5)
