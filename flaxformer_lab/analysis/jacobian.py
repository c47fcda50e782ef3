"""Which features reach which, and which tokens: the energy of the Jacobian J = d y_{t,c} / d x_{t',c'}.

Feature energy E_cc' = mean over x of sum_{t,t'} J^2; cross-feature energy = sum_{c != c'} E_cc' / sum E_cc'. Tokens the
same, with the roles exchanged. Rows of J come one at a time from the reverse pass, so that memory is that of a few
gradients and of two square matrices an example, never that of J, (tokens x features) squared: by the compiler's report
32 MB for an example of 256 tokens through two blocks of width 512, where J would fill 69 GB.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flaxformer_lab.analysis.estimate import Estimate, ratio

Function = Callable[[Float[Array, "batch tokens features"]], Float[Array, "batch tokens outputs"]]


@dataclass(frozen=True)
class Energy:
    """matrix[c, c']: energy that reaches output c from input c' (NaN in a row that no probe looked at).

    cross: the share that comes from another one than itself.
    """

    matrix: Float[np.ndarray, "outputs inputs"]
    cross: Estimate


def mixing_energy(
    function: Function, x: Float[Array, "batch tokens features"], *, probes: int | None = None, seed: int = 0
) -> tuple[Energy, Energy]:
    """Returns the energies between features and between tokens of a function that keeps examples apart.

    probes: None computes every row of J, tokens x outputs reverse passes; a number takes so many random rows for each
    of the two: an output feature with random signs over the tokens (or a token with random signs over the features),
    whose squared gradient has the row's energy as its mean (Hutchinson 1990).
    """
    if probes is None:
        features, tokens = _exact(function, x)
    else:
        features, tokens = _sampled(function, x, probes, jax.random.key(seed))
    return _energy(*features), _energy(*tokens)


@functools.partial(jax.jit, static_argnums=0)
def _exact(function: Function, x: Float[Array, "batch tokens features"]):
    """Sums of squared gradients: ([outputs, batch, features], [tokens, batch, tokens])."""
    y, pull = jax.vjp(function, x)
    batch, tokens, outputs = y.shape

    def row(totals: tuple[Array, Array], place: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
        by_feature, by_token = totals
        token, output = place // outputs, place % outputs
        (gradient,) = pull(jnp.zeros_like(y).at[:, token, output].set(1))
        squared = jnp.square(gradient.astype(jnp.float32))
        by_feature = by_feature.at[output].add(jnp.sum(squared, axis=1))
        return (by_feature, by_token.at[token].add(jnp.sum(squared, axis=2))), None

    empty = jnp.zeros((outputs, batch, x.shape[2])), jnp.zeros((tokens, batch, tokens))
    (by_feature, by_token), _ = jax.lax.scan(row, empty, jnp.arange(tokens * outputs))
    every = jnp.ones((outputs, batch)), jnp.ones((tokens, batch))
    return (by_feature, every[0]), (by_token, every[1])


@functools.partial(jax.jit, static_argnums=(0, 2))
def _sampled(function: Function, x: Float[Array, "batch tokens features"], probes: int, key: Key[Array, ""]):
    y, pull = jax.vjp(function, x)
    batch, tokens, outputs = y.shape

    def probe(totals: tuple[Array, Array], key: Key[Array, ""], along: int) -> tuple[tuple[Array, Array], None]:
        """One random row for each example: output features (along=2), or tokens (along=1)."""
        energy, visits = totals
        which_key, sign_key = jax.random.split(key)
        which = jax.random.randint(which_key, (batch,), 0, y.shape[along])
        chosen = (jnp.arange(y.shape[along])[None] == which[:, None]).astype(y.dtype)
        signs = jax.random.rademacher(sign_key, (batch, y.shape[3 - along]), y.dtype)
        left, right = (signs, chosen) if along == 2 else (chosen, signs)
        (gradient,) = pull(left[:, :, None] * right[:, None, :])
        squared = jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=3 - along)
        rows = jnp.arange(batch)
        return (energy.at[which, rows].add(squared), visits.at[which, rows].add(1)), None

    def all_probes(along: int) -> tuple[Array, Array]:
        size = y.shape[along]
        keys = jax.random.split(jax.random.fold_in(key, along), probes)
        empty = jnp.zeros((size, batch, x.shape[along])), jnp.zeros((size, batch))
        return jax.lax.scan(functools.partial(probe, along=along), empty, keys)[0]

    return all_probes(2), all_probes(1)


def _energy(energy: Float[Array, "outputs batch inputs"], visits: Float[Array, "outputs batch"]) -> Energy:
    energy, visits = np.asarray(energy, np.float64), np.asarray(visits, np.float64)
    with np.errstate(invalid="ignore"):
        matrix = energy.sum(axis=1) / visits.sum(axis=1)[:, None]
    if matrix.shape[0] != matrix.shape[1]:
        return Energy(matrix, Estimate(float("nan"), float("nan")))
    other = 1 - np.eye(len(matrix))
    # The off-diagonal part is summed by itself: a difference would leave rounding where there is exactly nothing.
    crossing, all_of_it = np.einsum("obi,oi->b", energy, other), energy.sum(axis=(0, 2))
    return Energy(matrix, ratio(crossing, all_of_it))
