"""How the fields of a record meet: in pairs (factorization machines), and by attention (AutoInt)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.functional.linear import matmul
from flaxformer_lab.functional.products import einsum, product


def products_with_others(x: Float[Array, "batch fields width"]) -> Float[Array, "batch fields width"]:
    """Half of each field's vector times the sum of all others, by feature.

    The sum of it all is that of <v_i, v_j> over pairs of fields: the products of a factorization machine (Rendle 2010,
    lemma 3.1).
    """
    return x * (jnp.sum(x, axis=1, keepdims=True) - x) / 2


def interacting_layer(
    x: Float[Array, "batch fields width"],
    query: Float[Array, "width width"],
    key: Float[Array, "width width"],
    value: Float[Array, "width width"],
    residual: Float[Array, "width width"],
    heads: int,
) -> Float[Array, "batch fields width"]:
    """Attention over the fields without scaling, plus a linear map of them, then ReLU (Song et al. 2019, eq. 5-8).

    Scores and their softmax are float32.
    """
    q, k, v = (_split(matmul(x, kernel), heads) for kernel in (query, key, value))
    weights = jax.nn.softmax(product("bihd,bjhd->bhij", q, k))
    attended = einsum("bhij,bjhd->bihd", weights.astype(x.dtype), v).reshape(x.shape)
    return jnp.maximum(attended + matmul(x, residual), 0)


def _split(x: Float[Array, "batch fields width"], heads: int) -> Float[Array, "batch fields heads features"]:
    return x.reshape(*x.shape[:2], heads, -1)
