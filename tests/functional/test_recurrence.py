"""Recurrences against flax's cells, and against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from flaxformer_lab.functional.recurrence import gru, lstm

BATCH, TOKENS, WIDTH = 2, 5, 3
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(BATCH, TOKENS, WIDTH))


def single(array):
    return jnp.asarray(array, jnp.float32)


def weights(gates):
    """Kernel and bias for the input, kernel for the state, each with its gates side by side."""
    kernel, state = GENERATOR.normal(size=(2, WIDTH, gates * WIDTH))
    return kernel, GENERATOR.normal(size=gates * WIDTH), state


def over_tokens(cell):
    """The cell's outputs from its own empty state on."""
    graph, state = nnx.split(cell)

    @jax.jit
    def run(state, x):
        cell, outputs = nnx.merge(graph, state), []
        carry = jax.tree.map(jnp.zeros_like, cell.initialize_carry((BATCH, WIDTH), nnx.Rngs(0)))
        for t in range(TOKENS):
            carry, output = cell(carry, x[:, t])
            outputs.append(output)
        return jnp.stack(outputs, axis=1)

    return run(state, single(X))


def test_lstm_is_that_of_flax():
    kernel, bias, state = weights(4)
    cell = nnx.LSTMCell(WIDTH, WIDTH, rngs=nnx.Rngs(0))
    for number, gate in enumerate(("i", "f", "g", "o")):
        part = slice(number * WIDTH, (number + 1) * WIDTH)
        from_input = getattr(cell, "if_" if gate == "f" else f"i{gate}")
        from_state = getattr(cell, f"h{gate}")
        from_input.kernel[...], from_state.kernel[...] = single(kernel[:, part]), single(state[:, part])
        from_state.bias[...] = single(bias[part])
    result = jax.jit(lstm)(single(X @ kernel + bias), single(state))
    np.testing.assert_allclose(result, over_tokens(cell), rtol=1e-4, atol=1e-5)


def test_gru_is_that_of_flax():
    kernel, bias, state = weights(3)
    cell = nnx.GRUCell(WIDTH, WIDTH, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...], cell.dense_i.bias[...] = single(kernel), single(bias)
    cell.dense_h.kernel[...] = single(state)
    result = jax.jit(gru)(single(X @ kernel + bias), single(state), None)
    np.testing.assert_allclose(result, over_tokens(cell), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [None, GENERATOR.normal(size=WIDTH)], ids=["plain", "with its own bias"])
def test_gru_by_its_formula(bias):
    kernel, input_bias, state = weights(3)
    inputs = X @ kernel + input_bias
    h, expected = np.zeros((BATCH, WIDTH)), np.zeros(X.shape)
    for t in range(TOKENS):
        from_input, from_state = np.split(inputs[:, t], 3, axis=1), np.split(h @ state, 3, axis=1)
        r, z = (expit(from_input[gate] + from_state[gate]) for gate in (0, 1))
        n = np.tanh(from_input[2] + r * (from_state[2] + (0 if bias is None else bias)))
        h = (1 - z) * n + z * h
        expected[:, t] = h
    result = jax.jit(gru)(single(inputs), single(state), None if bias is None else single(bias))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_lstm_by_its_formula():
    kernel, bias, state = weights(4)
    inputs = X @ kernel + bias
    h, c, expected = np.zeros((BATCH, WIDTH)), np.zeros((BATCH, WIDTH)), np.zeros(X.shape)
    for t in range(TOKENS):
        i, f, g, o = np.split(inputs[:, t] + h @ state, 4, axis=1)
        c = expit(f) * c + expit(i) * np.tanh(g)
        h = expit(o) * np.tanh(c)
        expected[:, t] = h
    np.testing.assert_allclose(jax.jit(lstm)(single(inputs), single(state)), expected, rtol=1e-4, atol=1e-5)
