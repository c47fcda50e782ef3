"""Probes with continuous inputs, i.i.d. N(0, 1) unless stated, and the theorem about each.

A probe's docstring gives its theorem and the conditions; `bound(model)` gives the number where they hold.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxformer_lab.model_config import ModelConfig, TransformerConfig
from flaxformer_lab.models import theory
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import (
    DelayConfig,
    MarkedTokenConfig,
    NearestConfig,
    PlantedInteractionsConfig,
    PointersConfig,
    ProductConfig,
    RotationConfig,
    ScaledLinearConfig,
)
from flaxformer_lab.tasks.probe import ContinuousProbe
from flaxformer_lab.tasks.task import Bound

Example = tuple[Float[Array, "tokens features"], Float[Array, "tokens outputs"], Float[Array, " tokens"]]


@register("task", "product", config=ProductConfig)
class Product(ContinuousProbe):
    """P1, P1b: y_t = x_{t,1} x_{t,2} ... of `order` features.

    Theorem: a network with f(-X) = -f(X) is uncorrelated with an even function of inputs that are as likely as their
    negatives, so R2 <= 0 at even order, at any depth, width and number of heads. Conditions: `theory.is_odd`. An
    affine network is uncorrelated with every product of two or more independent features.

    Norm ceiling: a network that sees the direction x / |x| of each token alone (`theory.is_scale_invariant`) misses
    |x|, which is independent of it. With n features and order k the best guess replaces |x|^k by its mean, so
    R2 <= (E |x|^k)^2 / E |x|^2k = Gamma((n + k) / 2)^2 / (Gamma(n / 2) Gamma(n / 2 + k)); n / (n + 2) at k = 2.
    """

    def __init__(self, config: ProductConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.tokens, self.features, self.outputs = config.tokens, config.features, 1

    def draw(self, key: Key[Array, ""]) -> Example:
        x = jax.random.normal(key, (self.tokens, self.features))
        return x, jnp.prod(x[:, : self._config.order], axis=1, keepdims=True), jnp.ones((self.tokens,))

    def bound(self, config: ModelConfig) -> Bound | None:
        if theory.is_affine(config, self.tokens):
            return Bound("r2", 0.0, "an affine map is uncorrelated with a product of independent features")
        if theory.is_odd(config, self.tokens) and self._config.order % 2 == 0:
            return Bound("r2", 0.0, "an odd function is uncorrelated with an even one")
        if theory.is_scale_invariant(config):
            n, k = self.features, self._config.order
            ceiling = math.exp(2 * math.lgamma((n + k) / 2) - math.lgamma(n / 2) - math.lgamma(n / 2 + k))
            return Bound("r2", ceiling, "the norm hides the length of a token")
        return None


@register("task", "rotation", config=RotationConfig)
class Rotation(ContinuousProbe):
    """P2: y_t = R x_t.

    Block law: where features reach each other only inside blocks of b of the d (`theory.block_size`, with identities
    for embedding and head), the best guess of output i is the sum of R_ij x_j over its block, so R2 is at most the mass
    of R^2 inside the blocks, divided by d: for R as drawn, which `bound` gives. Its mean over all rotations is b / d;
    with blocks of one it is that of the diagonal, 0 for a cyclic shift.

    Rank law: from r sums of a token's features (`theory.rank`) R2 <= r / d, and so for outputs that lie in r
    dimensions: no r directions hold more of d equal and independent variances. It is reached, for every R.
    """

    def __init__(self, config: RotationConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.tokens, self.features, self.outputs = config.tokens, config.features, config.features
        if config.rotation == "shift":
            self.rotation = np.roll(np.eye(config.features), 1, axis=0)
        else:
            drawn = np.random.default_rng(config.rotation_seed).normal(size=(config.features, config.features))
            orthogonal, triangular = np.linalg.qr(drawn)
            self.rotation = orthogonal * np.sign(np.diag(triangular))  # uniform over all rotations and reflections

    def draw(self, key: Key[Array, ""]) -> Example:
        x = jax.random.normal(key, (self.tokens, self.features))
        return x, x @ jnp.asarray(self.rotation.T, jnp.float32), jnp.ones((self.tokens,))

    def bound(self, config: ModelConfig) -> Bound | None:
        size, rank = theory.block_size(config, self.tokens), theory.rank(config, self.tokens)
        if size < self.features and "dense" not in (self._config.embedding, self._config.head):
            block = np.arange(self.features) // size
            inside = float(np.sum(self.rotation**2, where=block[:, None] == block) / self.features)
            return Bound("r2", inside, f"output i sees {f'its block of {size}' if size > 1 else 'feature i alone'}")
        if rank < self.features:
            return Bound("r2", rank / self.features, f"{rank} sums of {self.features} features")
        return None


@register("task", "pointers", config=PointersConfig)
class Pointers(ContinuousProbe):
    """P3: a query token with D distinct one-hot pointers asks for the contents of the D tokens they name.

    Content token t is [x_t, one-hot t, 0], the query is [0, 0, pointers]; y = (x_p1, ..., x_pD) at the query.
    Theorem: one layer whose weights do not depend on the contents gives each head one weighted sum of Gaussian
    contents, and the best guess of D contents from H such sums has R2 = min(H, D) / D, whatever FFN follows. With
    `decay` a, target i is multiplied by i^(-a / 2), and the best heads take the first ones:
    R2 = sum_{i <= H} i^-a / sum_{i <= D} i^-a.
    Conditions: depth 1, no norm, and that the weights see the pointers alone, which no knob enforces: with weights
    that depend on contents too, built by hand, one head reaches 0.31 instead of 0.25. Mean attention has a single sum,
    of all T: R2 = 1 / T, without that condition.
    """

    def __init__(self, config: PointersConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.tokens = config.tokens + 1
        self.features = config.features + config.tokens * (1 + config.pointers)
        self.outputs = config.pointers * config.features
        self.shares = np.arange(1.0, config.pointers + 1) ** -config.decay  # of the variance, by pointer
        self.variance = float(np.mean(self.shares))

    def draw(self, key: Key[Array, ""]) -> Example:
        size, number = self._config.tokens, self._config.pointers
        content_key, pointer_key = jax.random.split(key)
        contents = jax.random.normal(content_key, (size, self._config.features))
        pointers = jax.random.permutation(pointer_key, size)[:number]
        names = jnp.concatenate([contents, jnp.eye(size), jnp.zeros((size, size * number))], axis=1)
        query = jnp.concatenate([jnp.zeros(self._config.features + size), jnp.eye(size)[pointers].reshape(-1)])
        targets = contents[pointers] * jnp.asarray(np.sqrt(self.shares), jnp.float32)[:, None]
        return jnp.concatenate([names, query[None]]), *_at_the_end(targets.reshape(-1), self.tokens)

    def bound(self, config: ModelConfig) -> Bound | None:
        if theory.reach(config, self.tokens) == 0:
            return Bound("r2", 0.0, "the query sees no other token")
        if not isinstance(config, TransformerConfig) or config.depth != 1 or config.norm.kind != "off":
            return None
        if config.attention.activation != "identity" or not theory.ffn_is_token_wise(config, self.tokens):
            return None  # then the sums are not of Gaussian contents
        if config.attention.kind == "mean" and config.attention.window is None:
            return Bound("r2", 1 / self._config.tokens, "one sum of all contents")
        heads, pointers = config.attention.num_heads, self._config.pointers
        if config.attention.kind == "softmax":
            reason = f"{heads} weighted sums of {pointers} contents"
            value = float(self.shares[:heads].sum() / self.shares.sum())
            return Bound("r2", value, reason, assumes="the weights do not see the contents")
        return None


@register("task", "nearest", config=NearestConfig)
class Nearest(ContinuousProbe):
    """P4, P5: of T unit vectors, the one nearest to the query token's, at the query.

    Candidate t is [v_t, 0], the query is [0, q]: separate features, so that the query is not nearest to itself. It is
    the opposite of P3: the comparison needs all features in one dot product, so one wide head beats many narrow ones
    (Bhojanapalli et al. 2020). With `log_scale`, feature c is multiplied by 10^linspace(-a, a): standardising each
    feature removes the effect, a norm over each token does not.
    """

    def __init__(self, config: NearestConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.tokens, self.features, self.outputs = config.tokens + 1, 2 * config.features, config.features
        self.variance = 1 / config.features  # of each coordinate of a uniform unit vector

    def draw(self, key: Key[Array, ""]) -> Example:
        config = self._config
        vectors = jax.random.normal(key, (config.tokens + 1, config.features))
        vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
        candidates, query = vectors[:-1], vectors[-1]
        nearest = candidates[jnp.argmax(candidates @ query)]
        scale = np.logspace(-config.log_scale, config.log_scale, config.features)
        # Standardised: the standard deviation of feature c is scale_c / sqrt(features).
        scale = np.full(config.features, config.features**0.5) if config.standardised else scale
        vectors = vectors * jnp.asarray(scale, jnp.float32)[None]
        is_query = jnp.arange(config.tokens + 1)[:, None] == config.tokens
        inputs = jnp.concatenate([jnp.where(is_query, 0, vectors), jnp.where(is_query, vectors, 0)], axis=1)
        return inputs, *_at_the_end(nearest, self.tokens)

    def bound(self, config: ModelConfig) -> Bound | None:
        # The query alone predicts its nearest vector a little, so seeing no other token gives no simple bound.
        return None


@register("task", "scaled_linear", config=ScaledLinearConfig)
class ScaledLinear(ContinuousProbe):
    """P5b: y = sum_c x_c / sqrt(C) where the input is scale * x; one token.

    Adam moves each weight by about the learning rate a step, and the weights must grow to 1 / scale: the number of
    steps to learn it grows as 1 / scale, where a least-squares solver is not affected.
    """

    def __init__(self, config: ScaledLinearConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.tokens, self.features, self.outputs = 1, config.features, 1

    def draw(self, key: Key[Array, ""]) -> Example:
        x = jax.random.normal(key, (1, self.features))
        return self._config.scale * x, jnp.sum(x, axis=1, keepdims=True) * self.features**-0.5, jnp.ones((1,))


@register("task", "planted_interactions", config=PlantedInteractionsConfig)
class PlantedInteractions(ContinuousProbe):
    """P8: y = sum_i a_i x_i + sum_{i<j} b_ij x_i x_j of one token, with sum a^2 + sum b^2 = 1.

    The products' share of the variance is exactly sum b^2 = `interaction_share`: the known value against which measures
    of interaction are calibrated. An affine or odd network cannot exceed R2 = 1 - share.
    """

    def __init__(self, config: PlantedInteractionsConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.tokens, self.features, self.outputs = 1, config.features, 1
        generator = np.random.default_rng(config.coefficient_seed)
        linear = generator.normal(size=config.features)
        products = np.triu(generator.normal(size=(config.features, config.features)), k=1)
        share = config.interaction_share
        self.linear = linear * np.sqrt((1 - share) / np.sum(linear**2))
        self.products = products * np.sqrt(share / np.sum(products**2))

    def draw(self, key: Key[Array, ""]) -> Example:
        x = jax.random.normal(key, (1, self.features))
        return x, self.truth(x), jnp.ones((1,))

    def truth(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch 1"]:
        """The planted function."""
        linear, products = jnp.asarray(self.linear, x.dtype), jnp.asarray(self.products, x.dtype)
        return (x @ linear + jnp.sum((x @ products) * x, axis=-1))[..., None]

    def bound(self, config: ModelConfig) -> Bound | None:
        if theory.is_affine(config, self.tokens):
            return Bound("r2", 1 - self._config.interaction_share, "an affine map sees no product")
        if theory.is_odd(config, self.tokens):
            return Bound("r2", 1 - self._config.interaction_share, "an odd map sees no product of two")
        return None


@register("task", "delay", config=DelayConfig)
class Delay(ContinuousProbe):
    """P9: y_t = x_{t - distance}. Theorem: where no token that far back can be seen, R2 = 0 (`theory.reach`)."""

    def __init__(self, config: DelayConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.tokens, self.features, self.outputs = config.tokens, config.features, config.features

    def draw(self, key: Key[Array, ""]) -> Example:
        distance = self._config.distance
        x = jax.random.normal(key, (self.tokens, self.features))
        weights = (jnp.arange(self.tokens) >= distance).astype(jnp.float32)
        return x, jnp.roll(x, distance, axis=0), weights

    def bound(self, config: ModelConfig) -> Bound | None:
        return _blind_beyond(config, self.tokens, self._config.distance)


@register("task", "marked_token", config=MarkedTokenConfig)
class MarkedToken(ContinuousProbe):
    """Long range: the last token asks for the content of the marked one, `distance` before it.

    Token t is [x_t, is marked, is last]. Attention reaches any distance in one layer, a convolution only as far as
    its depth and kernel allow (`theory.reach`), a recurrence as far as its state holds out.
    """

    def __init__(self, config: MarkedTokenConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.tokens, self.features, self.outputs = config.tokens, config.features + 2, config.features

    def draw(self, key: Key[Array, ""]) -> Example:
        marked = self.tokens - 1 - self._config.distance
        contents = jax.random.normal(key, (self.tokens, self._config.features))
        places = jnp.arange(self.tokens)[:, None] == jnp.array([[marked, self.tokens - 1]])
        inputs = jnp.concatenate([contents, places.astype(jnp.float32)], axis=1)
        return inputs, *_at_the_end(contents[marked], self.tokens)

    def bound(self, config: ModelConfig) -> Bound | None:
        return _blind_beyond(config, self.tokens, self._config.distance)


def _at_the_end(
    target: Float[Array, " outputs"], tokens: int
) -> tuple[Float[Array, "{tokens} outputs"], Float[Array, "{tokens}"]]:
    """Targets and weights that ask the last token alone."""
    last = (jnp.arange(tokens) == tokens - 1).astype(jnp.float32)
    return last[:, None] * target[None], last


def _blind_beyond(config: ModelConfig, tokens: int, distance: int) -> Bound | None:
    sight = theory.reach(config, tokens)
    return Bound("r2", 0.0, f"a token sees {sight:.0f} back, not {distance}") if sight < distance else None
