"""Products of every two features through low-rank factors."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import matmul
from flaxformer_lab.functional.products import widened


def pairwise_products(
    x: Float[Array, "*batch features"], factors: Float[Array, "features rank"]
) -> Float[Array, "*batch rank"]:
    """sum_{i<j} v_ir v_jr x_i x_j = ((x V)_r^2 - (x^2 V^2)_r) / 2, linear in features (Rendle 2010, lemma 3.1)."""
    dtype, x = x.dtype, widened(x)
    return ((jnp.square(matmul(x, factors)) - matmul(jnp.square(x), jnp.square(factors))) / 2).astype(dtype)
