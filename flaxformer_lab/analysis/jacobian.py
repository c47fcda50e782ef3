"""Which features reach which, and which tokens: the energy of the Jacobian J = d y_{t,c} / d x_{t',c'}.

Feature energy E_cc' = mean over x of sum_{t,t'} J^2; cross-feature energy = sum_{c != c'} E_cc' / sum E_cc'. Token
energy is the same with the roles exchanged. Rows of J are computed one at a time by the reverse pass, so that memory is
that of a few gradients and of two square matrices per example, not that of J, (tokens x features) squared: by the
compiler's report 32 MB for an example of 256 tokens through two blocks of width 512, where J would take 69 GB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flaxformer_lab.analysis.estimate import Estimate, ratio

Function = Callable[[Float[Array, "batch tokens features"]], Float[Array, "batch tokens outputs"]]


@dataclass(frozen=True)
class Energy:
    """matrix[c, c']: energy that reaches output c from input c' (NaN in a row that was never sampled).

    cross: the share that reaches an output from inputs of another index.
    """

    matrix: Float[np.ndarray, "outputs inputs"]
    cross: Estimate


def mixing_energy(
    function: Function,
    x: Float[Array, "batch tokens features"],
    *,
    num_random_vectors: int | None = None,
    seed: int = 0,
) -> tuple[Energy, Energy]:
    """Returns the energies between features and between tokens of a function that does not mix examples.

    num_random_vectors: None computes every row of J, in tokens x outputs reverse passes; a number draws as many random
    rows for each of the two: an output feature with random signs over the tokens (or a token with random signs over the
    features), whose squared gradient has the row's energy as its mean (Hutchinson 1990).
    """
    if num_random_vectors is None:
        features, tokens = jax.jit(_exact, static_argnums=0)(function, x)
    else:
        features, tokens = jax.jit(_sampled, static_argnums=(0, 2))(
            function, x, num_random_vectors, jax.random.key(seed)
        )
    return _energy(*features), _energy(*tokens)


def cross_shares(
    function: Function, x: Float[Array, "batch tokens features"], num_random_vectors: int, key: Key[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Only the shares of cross-feature and of cross-token energy, sampled; for use inside another program."""

    def share(energy: Float[Array, "outputs batch inputs"]) -> Float[Array, ""]:
        other = 1 - jnp.eye(energy.shape[0])
        return jnp.sum(energy * other[:, None, :]) / jnp.sum(energy)

    (features, _), (tokens, _) = _sampled(function, x, num_random_vectors, key)
    return share(features), share(tokens)


def _exact(function: Function, x: Float[Array, "batch tokens features"]):
    """Sums of squared gradients: ([outputs, batch, features], [tokens, batch, tokens])."""
    y, pull = jax.vjp(function, x)
    batch, tokens, outputs = y.shape

    def row(totals: tuple[Array, Array], index: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
        by_feature, by_token = totals
        token, output = index // outputs, index % outputs
        (gradient,) = pull(jnp.zeros_like(y).at[:, token, output].set(1))
        squared = jnp.square(gradient.astype(jnp.float32))
        by_feature = by_feature.at[output].add(jnp.sum(squared, axis=1))
        return (by_feature, by_token.at[token].add(jnp.sum(squared, axis=2))), None

    empty = jnp.zeros((outputs, batch, x.shape[2])), jnp.zeros((tokens, batch, tokens))
    (by_feature, by_token), _ = jax.lax.scan(row, empty, jnp.arange(tokens * outputs))
    ones = jnp.ones((outputs, batch)), jnp.ones((tokens, batch))
    return (by_feature, ones[0]), (by_token, ones[1])


def _sampled(
    function: Function, x: Float[Array, "batch tokens features"], num_random_vectors: int, key: Key[Array, ""]
):
    """((energy, visits) of features, of tokens): sums, and how often each row of each example was sampled."""
    y, pull = jax.vjp(function, x)
    batch, tokens, outputs = y.shape
    rows = jnp.arange(batch)

    def accumulate(totals: Any, inputs: tuple[Array, Array, Array, Array]) -> tuple[Any, None]:
        """One random row for each example, of output features or of tokens, in one reverse pass."""
        number, is_feature_row, token, output = inputs
        signs = jax.random.rademacher(jax.random.fold_in(key, number), y.shape, y.dtype)
        token_mask = jax.nn.one_hot(token, tokens, dtype=y.dtype)[:, :, None]
        feature_mask = jax.nn.one_hot(output, outputs, dtype=y.dtype)[:, None, :]
        (gradient,) = pull(signs * jnp.where(is_feature_row, feature_mask, token_mask))
        squared = jnp.square(gradient.astype(jnp.float32))
        (features, feature_visits), (by_tokens, token_visits) = totals
        kind = is_feature_row.astype(jnp.float32)
        features = features.at[output, rows].add(kind * jnp.sum(squared, axis=1))
        by_tokens = by_tokens.at[token, rows].add((1 - kind) * jnp.sum(squared, axis=2))
        visits_now = feature_visits.at[output, rows].add(kind), token_visits.at[token, rows].add(1 - kind)
        return ((features, visits_now[0]), (by_tokens, visits_now[1])), None

    def empty(size: int, inputs: int) -> tuple[Array, Array]:
        return jnp.zeros((size, batch, inputs)), jnp.zeros((size, batch))

    numbers = jnp.arange(2 * num_random_vectors)
    uniform = jax.random.uniform(jax.random.fold_in(key, 2 * num_random_vectors), (2, 2 * num_random_vectors, batch))
    token, output = jnp.floor(uniform[0] * tokens).astype(int), jnp.floor(uniform[1] * outputs).astype(int)
    start = empty(outputs, x.shape[2]), empty(tokens, tokens)
    return jax.lax.scan(accumulate, start, (numbers, numbers < num_random_vectors, token, output))[0]


def _energy(energy: Float[Array, "outputs batch inputs"], visits: Float[Array, "outputs batch"]) -> Energy:
    energy, visits = np.asarray(energy, np.float64), np.asarray(visits, np.float64)
    with np.errstate(invalid="ignore"):
        matrix = energy.sum(axis=1) / visits.sum(axis=1)[:, None]
    if matrix.shape[0] != matrix.shape[1]:
        return Energy(matrix, Estimate(float("nan"), float("nan")))
    other = 1 - np.eye(len(matrix))
    # The off-diagonal part is summed directly: a difference would leave rounding errors where the energy is exactly 0.
    crossing, all_of_it = np.einsum("obi,oi->b", energy, other), energy.sum(axis=(0, 2))
    return Energy(matrix, ratio(crossing, all_of_it))
