"""Auto-Correlation: a series attends to itself, shifted by the delays at which it resembles itself (Wu et al. 2021).

Layout: [batch, tokens, heads, head_dim]. Tokens are a circle: what is shifted out at one end comes in at the other.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "batch tokens heads head_dim"]


def num_delays(factor: float, tokens: int) -> int:
    """int(factor * ln tokens), from 1 to tokens: how many delays are summed (eq. 6)."""
    return max(1, min(int(factor * math.log(tokens)), tokens))


def fit_length(
    x: Float[Array, "batch keys heads head_dim"], tokens: int
) -> Float[Array, "batch {tokens} heads head_dim"]:
    """Keys or values with zeros at the end, or cut, so that there are as many as queries (section 3.2)."""
    return jnp.pad(x[:, :tokens], ((0, 0), (0, max(0, tokens - x.shape[1])), (0, 0), (0, 0)))


def correlation(query: Heads, key: Heads) -> Float[Array, "batch tokens"]:
    """R(d) = sum_t q_{t+d} . k_t, averaged over heads and features, by FFT (eq. 5 and 8); float32.

    The authors' code leaves the length out of the inverse transform, which for an odd number of tokens is then one too
    short; this follows the equation, as transformers does.
    """
    spectra = (jnp.fft.rfft(x.astype(jnp.float32), axis=1) for x in (query, key))
    product = jnp.mean(next(spectra) * jnp.conj(next(spectra)), axis=(2, 3))
    return jnp.fft.irfft(product, n=query.shape[1], axis=1)


def delay_weights(
    correlation: Float[Array, "batch tokens"], *, factor: float, shared: bool = False, axis_name: str | None = None
) -> Float[Array, "batch tokens"]:
    """The weight of each delay: a softmax of the correlation over the best ones, 0 for all others (eq. 6).

    shared: one set of delays for the batch, those with the best mean over it, of all devices of the mapped axis
    `axis_name`, as the authors train; else each example has its own, as they evaluate.
    """
    tokens = correlation.shape[1]
    measure = jax.lax.stop_gradient(correlation)
    if shared:
        measure = jnp.mean(measure, axis=0, keepdims=True)
        measure = measure if axis_name is None else jax.lax.pmean(measure, axis_name)
    delays = jax.lax.top_k(measure, num_delays(factor, tokens))[1]
    chosen = jnp.any(delays[..., None] == jnp.arange(tokens)[None, None], axis=1)
    return jax.nn.softmax(jnp.where(chosen, correlation, -jnp.inf), axis=-1)


def aggregate(weights: Float[Array, "batch tokens"], value: Heads) -> Heads:
    """sum_d w_d v_{t+d}: the values rolled back by each delay, weighted and summed (eq. 6), by FFT."""
    spectrum = jnp.conj(jnp.fft.rfft(weights, axis=1))[:, :, None, None]
    spectrum = spectrum * jnp.fft.rfft(value.astype(jnp.float32), axis=1)
    return jnp.fft.irfft(spectrum, n=value.shape[1], axis=1).astype(value.dtype)


def autocorrelation_attention(query: Heads, key: Heads, value: Heads, **options) -> Heads:
    """Correlate, choose delays, aggregate; options as for `delay_weights`. All have as many tokens (`fit_length`)."""
    return aggregate(delay_weights(correlation(query, key), **options), value)
