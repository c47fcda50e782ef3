"""Recurrent cells over tokens. What the state does not enter is computed in advance, in one product over all tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import add_bias, matmul

TokenVectors = Float[Array, "batch tokens width"]


@jax.jit
def lstm(
    inputs: Float[Array, "batch tokens gates"], kernel: Float[Array, "width gates"]
) -> Float[Array, "batch tokens width"]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    inputs: x W + b, its quarters for the input gate, forget gate, candidate and output gate; kernel: the same of the
    state. c <- f c + i g, h = o tanh(c).
    """

    def cell(state: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
        hidden, cell_state = state
        input_gate, forget_gate, candidate, output_gate = jnp.split(gates + matmul(hidden, kernel), 4, axis=-1)
        cell_state = jax.nn.sigmoid(forget_gate) * cell_state + jax.nn.sigmoid(input_gate) * jnp.tanh(candidate)
        hidden = jax.nn.sigmoid(output_gate) * jnp.tanh(cell_state)
        return (hidden, cell_state), hidden

    zeros = jnp.zeros((inputs.shape[0], kernel.shape[0]), inputs.dtype)
    return _over_tokens(cell, (zeros, zeros), inputs)


@jax.jit
def gru(
    inputs: Float[Array, "batch tokens gates"],
    kernel: Float[Array, "width gates"],
    candidate_bias: Float[Array, " width"] | None,
) -> Float[Array, "batch tokens width"]:
    """Gated recurrent unit (Cho et al. 2014), the reset gate applied after the product, as cuDNN does.

    inputs: x W + b, its thirds for reset gate, update gate and candidate; kernel: the same of the state.
    h <- (1 - z) tanh(n + r (h U_n + b_n)) + z h.
    """

    def cell(hidden: Array, gates: Array) -> tuple[Array, Array]:
        reset, update, candidate = jnp.split(gates, 3, axis=-1)
        state_reset, state_update, state_candidate = jnp.split(matmul(hidden, kernel), 3, axis=-1)
        state_candidate = add_bias(state_candidate, candidate_bias)
        update = jax.nn.sigmoid(update + state_update)
        new = jnp.tanh(candidate + jax.nn.sigmoid(reset + state_reset) * state_candidate)
        hidden = (1 - update) * new + update * hidden
        return hidden, hidden

    return _over_tokens(cell, jnp.zeros((inputs.shape[0], kernel.shape[0]), inputs.dtype), inputs)


def _over_tokens(cell: Callable, state: Array | tuple[Array, Array], inputs: Array) -> TokenVectors:
    return jnp.swapaxes(jax.lax.scan(cell, state, jnp.swapaxes(inputs, 0, 1))[1], 0, 1)
