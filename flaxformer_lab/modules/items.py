"""Items of a shop: baskets as token vectors, and scores of all items for what comes next."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab.functional.linear import add_bias, matmul
from flaxformer_lab.functional.products import einsum
from flaxformer_lab.modules.projection import normal, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read, take_rows

NO_ITEM = 0  # fills an example up; real items are numbered from 1

Inputs = dict[str, Int[Array, "batch _"]]


class ItemEmbedding(nnx.Module):
    """A learned vector for each item; a token is an item, or the mean over the items of a basket.

    items: with what fills up and a mask, if there is one. tokens: how many baskets there are; None: items are tokens.
    """

    def __init__(self, items: int, width: int, *, tokens: int | None, dtype: str, rngs: Rngs):
        self._tokens, self._dtype = tokens, jnp.dtype(dtype)
        self.table = normal(rngs, (items, width), width, (None, "width"))

    def __call__(self, inputs: Inputs) -> Float[Array, "batch tokens width"]:
        vectors = take_rows(self.table, inputs["items"], self._dtype)
        if self._tokens is None:
            return vectors
        return mean_of_groups(vectors, inputs["baskets"], self._tokens)

    def valid(self, inputs: Inputs) -> Bool[Array, "batch tokens"]:
        """`valid_tokens` of these inputs."""
        return valid_tokens(inputs, self._tokens)


def valid_tokens(inputs: Inputs, tokens: int | None) -> Bool[Array, "batch tokens"]:
    """Which tokens are no filling; the first one always counts: a user without a history has one empty token.

    tokens: how many baskets there are; None: items are tokens.
    """
    if tokens is None:
        valid = inputs["items"] != NO_ITEM
    else:
        valid = jnp.arange(tokens)[None] <= jnp.max(inputs["baskets"], axis=1, keepdims=True)
    return valid.at[:, 0].set(True)


def mean_of_groups(
    vectors: Float[Array, "batch events width"], groups: Int[Array, "batch events"], number: int
) -> Float[Array, "batch number width"]:
    """The mean over the events of each group, as a product of matrices; 0 of none. Groups outside are left out."""
    belongs = (groups[:, None, :] == jnp.arange(number)[None, :, None]).astype(vectors.dtype)
    counts = jnp.maximum(jnp.sum(belongs, axis=2, keepdims=True), 1)
    return einsum("bge,bew->bgw", belongs / counts, vectors)


class ItemHead(nnx.Module):
    """Scores of all items at some places: of each item's vector with the token's, and, with `ages`, of what was bought.

    ages: how many baskets ago a purchase may be to count; each age has a weight of its own, which starts as a multiple
    of 0.8^age (personal frequency). 0: the past is not added. tied: items have the vectors of the embedding.
    """

    def __init__(self, items: int, width: int, *, ages: int, tied: bool, bias: bool, rngs: Rngs):
        self._items = items
        self.table = None if tied else normal(rngs, (items, width), width, (None, "width"))
        self.bias = zeros((items,), (None,)) if bias else None
        self.recency = nnx.Param(3 * 0.8 ** jnp.arange(ages, dtype=jnp.float32), axes=(None,)) if ages else None

    def __call__(
        self, x: Float[Array, "batch tokens width"], inputs: Inputs, items: nnx.Param
    ) -> Float[Array, "batch places items"]:
        """items: the table of the embedding, whose row 0 is what fills up, and whose last one may be a mask."""
        at_places = jnp.take_along_axis(x, inputs["places"][:, :, None], axis=1)
        table = read(items)[1:] if self.table is None else read(self.table)
        scores = matmul(at_places, table[: self._items].T)
        if self.bias is not None:
            scores = add_bias(scores, read(self.bias))
        return scores if self.recency is None else scores + self._bought(inputs).astype(scores.dtype)

    def _bought(self, inputs: Inputs) -> Float[Array, "batch places items"]:
        """The weights of each item's purchases until each place, added up."""
        items, baskets, places = (inputs[name] for name in ("items", "baskets", "places"))
        age = places[:, :, None] - baskets[:, None, :]
        counts = (age >= 0) & (items[:, None, :] != NO_ITEM)
        weights = jnp.where(counts, read(self.recency)[jnp.clip(age, 0, len(self.recency) - 1)], 0)
        rows = jnp.arange(items.shape[0])[:, None, None], jnp.arange(places.shape[1])[None, :, None]
        bought = jnp.zeros((items.shape[0], places.shape[1], self._items + 1), jnp.float32)
        return bought.at[*rows, items[:, None, :]].add(weights)[..., 1:]
