import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis.symmetry import (
    equivariance_errors,
    feature_equivariance_error,
    linearity_error,
    oddness,
    token_equivariance_error,
)

ODD = {"bias": False, "position": "off", "ffn.activation": "tanh"}
LINEAR = {
    "attention.kind": "static",
    "ffn.activation": "identity",
    "norm.kind": "off",
    "bias": False,
    "position": "off",
}
TOKENS, FEATURES = np.array([2, 0, 3, 1]), np.array([3, 1, 7, 0, 2, 6, 4, 5])


@pytest.fixture
def function(transformer):
    """The function that gives a drawn Transformer as a function of its input."""

    def make(knobs):
        drawn = transformer(knobs)
        return lambda x: drawn.apply(drawn.params, x)

    return make


def test_an_odd_network_is_exactly_odd(function, stream):
    assert oddness(function(ODD), jnp.asarray(stream)) == 0
    assert oddness(function(ODD | {"bias": True}), jnp.asarray(stream)) > 0.01


def test_oddness_of_functions_of_known_parity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    assert oddness(lambda x: x**3, x) == 0
    assert oddness(jnp.square, x) == float("inf")
    even, odd = np.linalg.norm(np.square(x)), np.linalg.norm(x)
    assert oddness(lambda x: x + x**2, x) == pytest.approx(even / odd, rel=1e-5)
    assert oddness(jnp.zeros_like, x) == 0


def test_the_linear_network_is_linear_and_another_is_not(function, stream):
    x, y = jnp.asarray(stream), jnp.asarray(stream[::-1])
    assert linearity_error(function(LINEAR), x, y) < 1e-5
    assert linearity_error(function(LINEAR | {"attention.kind": "softmax"}), x, y) > 0.01


def test_a_constant_is_not_linear():
    x, y = jnp.ones((1, 2, 2)), -jnp.ones((1, 2, 2))
    # f(aX + bY) = 1 beside a + b.
    assert linearity_error(jnp.ones_like, x, y, a=2.0, b=3.0) == pytest.approx(4 / 5)


def test_attention_without_positions_treats_tokens_alike_but_not_features(function, stream):
    x = jnp.asarray(stream)
    unplaced = function({"position": "off"})
    assert token_equivariance_error(unplaced, x, TOKENS) < 1e-6
    assert feature_equivariance_error(unplaced, x, FEATURES) > 0.1
    assert token_equivariance_error(function({"position": "learned"}), x, TOKENS) > 0.01
    assert token_equivariance_error(function({"position": "off", "causal": True}), x, TOKENS) > 0.01


def test_features_are_alike_to_a_network_that_has_no_weight_of_its_own_for_each(function, stream):
    """Identity projections with a head a feature treat features alike; a diagonal has a weight for each of them."""
    alike = {
        "attention.num_heads": 8,
        "attention.head_dim": 1,
        "attention.projection": "identity",
        "attention.output": "identity",
        "ffn.kind": "off",
        "norm.kind": "off",
        "position": "off",
    }
    x = jnp.asarray(stream)
    assert feature_equivariance_error(function(alike), x, FEATURES) < 1e-6
    assert feature_equivariance_error(function(alike | {"attention.projection": "diagonal"}), x, FEATURES) > 0.01


def test_the_errors_of_known_functions():
    x = jnp.asarray([[[3.0, 0.0], [0.0, 0.0]]])
    swap = np.array([1, 0])
    first_token, first_feature = lambda x: x.at[:, 1].set(0), lambda x: x.at[:, :, 1].set(0)
    # The only value ends up in the place that is kept, or in the one that is not: both norms are 3.
    assert token_equivariance_error(first_token, x, swap) == pytest.approx(1)
    assert feature_equivariance_error(first_feature, x, swap) == pytest.approx(1)
    assert token_equivariance_error(first_feature, x, swap) == feature_equivariance_error(first_token, x, swap) == 0


def test_both_errors_come_from_one_call_too(function, stream):
    drawn, x, calls = function({"position": "off"}), jnp.asarray(stream), []

    def counted(x):
        calls.append(x.shape)
        return drawn(x)

    found = equivariance_errors(counted, x, TOKENS, FEATURES)
    assert len(calls) == 1
    expected = token_equivariance_error(drawn, x, TOKENS), feature_equivariance_error(drawn, x, FEATURES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
