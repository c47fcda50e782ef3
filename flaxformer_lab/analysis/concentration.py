"""Where a model looks: how much of its attention, and of its output's gradient, lies inside the objects of an image."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.analysis.sight import patch_side
from flaxformer_lab.models.network import PureNetwork

Tree = Any  # a pytree of arrays
Pixels = Float[Array, "batch rows columns"]


@jax.jit
def concentration(shown: Float[Array, "batch *places"], objects: Float[Array, "batch *places"]) -> Float[Array, ""]:
    """The share of what is shown that lies in objects, divided by their share of the area: 1 where it is spread evenly.

    shown: not negative. objects: from 0 to 1, how much of each place they cover. The mean over examples that have both.
    """
    shown, objects = (each.reshape(each.shape[0], -1) for each in (shown, objects))
    area, total = jnp.mean(objects, axis=1), jnp.sum(shown, axis=1)
    counts = (area > 0) & (total > 0)
    share = jnp.sum(shown * objects, axis=1) / jnp.where(counts, total * area, 1)
    return jnp.sum(jnp.where(counts, share, 0)) / jnp.sum(counts)


@functools.partial(jax.jit, static_argnames="tokens")
def covered_tokens(objects: Pixels, tokens: int) -> Float[Array, "batch tokens"]:
    """How much of each token's patch objects cover; tokens are square patches of the image, row by row.

    Raises:
        ValueError: no patches of one size are so many.
    """
    (batch, rows, columns), size = objects.shape, patch_side(tokens, *objects.shape[1:])
    patches = objects.reshape(batch, rows // size, size, columns // size, size)
    return jnp.mean(patches, axis=(2, 4)).reshape(batch, -1)


@jax.jit
def attention_received(weights: Float[Array, "batch heads queries keys"]) -> Float[Array, "batch keys"]:
    """What each token is given, the mean over heads and queries."""
    return jnp.mean(weights, axis=(1, 2))


def saliency(
    apply: Callable[[Float[Array, "batch ..."]], Float[Array, "batch classes"]],
    inputs: Float[Array, "batch ... channels"],
) -> Float[Array, "batch ..."]:
    """|d (largest logit) / d input|, summed over channels (Simonyan et al. 2014)."""

    @jax.jit
    def run(inputs: Array) -> Array:
        gradient = jax.grad(lambda x: jnp.sum(jnp.max(apply(x), axis=-1)))(inputs)
        return jnp.sum(jnp.abs(gradient), axis=-1)

    return run(inputs)


def layer_saliency(
    network: PureNetwork, params: Tree, model_state: Tree, inputs: Tree, names: Sequence[str]
) -> dict[str, Float[Array, "batch tokens"]]:
    """|d (largest logit) / d intermediate value|, summed over features, for each of the named values.

    The values are those that the network offers; each is moved by a small amount that a hook adds.
    """
    values = jax.eval_shape(lambda: network.run_with_cache(params, model_state, inputs, names=names)[1])

    @jax.jit
    def run(params: Tree, model_state: Tree, inputs: Tree) -> dict[str, Array]:
        def largest(moved: dict[str, Array]) -> Float[Array, ""]:
            hooks = {name: lambda x, move=move: x + move for name, move in moved.items()}
            return jnp.sum(jnp.max(network.run_with_hooks(params, model_state, inputs, hooks), axis=-1))

        zeros = {name: jnp.zeros(values[name].shape, values[name].dtype) for name in names}
        return jax.tree.map(lambda leaf: jnp.sum(jnp.abs(leaf), axis=-1), jax.grad(largest)(zeros))

    return run(params, model_state, inputs)
