"""How much the loss depends on each attention head (Michel et al. 2019)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any  # a pytree of arrays


def head_importance(
    loss: Callable[[dict[str, Array], Tree], Float[Array, ""]],
    outputs: dict[str, Float[Array, "merged ..."]],
    heads: int,
    examples: Tree,
) -> dict[str, Float[Array, " heads"]]:
    """E |dL / d gate_h| at gate 1, for a gate that multiplies the output of head h (eq. 2).

    The gate is a factor of that head's rows of the output map W, so its derivative is <W_h, dL / dW_h>; the forward
    pass does not change. loss(outputs, example): one example's loss as a function of the maps, named as in the result.
    """

    def gates(example: Tree) -> dict[str, Float[Array, " heads"]]:
        gradients = jax.grad(loss)(outputs, example)
        products = jax.tree.map(jnp.multiply, outputs, gradients)
        return {name: jnp.abs(jnp.sum(each.reshape(heads, -1), axis=1)) for name, each in products.items()}

    return jax.tree.map(lambda each: jnp.mean(each, axis=0), jax.lax.map(gates, examples))
