"""A row of measures for a model's word vectors and for each layer, beside weights as training may start from."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from flaxformer_lab.ablation.learned.parts import Parts
from flaxformer_lab.analysis import learned, surgery
from flaxformer_lab.analysis.jacobian import cross_shares
from flaxformer_lab.analysis.surgery import Frozen
from flaxformer_lab.models.network import Tree

FITS = {
    "attention": ("attention.input", "attention.output"),
    "FFN": ("ffn.input", "ffn.output"),
    "block": ("input", "output"),
    "change": ("input", "change"),
}


def measure_rows(parts: Parts) -> Iterator[dict[str, Any]]:
    """The rows. Of rotary models the ranks of W_q W_k^T are None: their scores have no one such matrix."""
    config, table = parts.config, np.asarray(parts.params["embedding"]["table"])
    rng = np.random.default_rng(0)
    sample = table[rng.choice(len(table), min(4096, len(table)), replace=False)]
    drawn = rng.standard_normal(sample.shape)
    first = parts.activations[0]["input"]
    for name, values in (("word vectors", sample), ("drawn from N(0, 1)", drawn), ("first block's input", first)):
        yield {"cut": "measures", "layer": name} | _of_vectors(values, rng)
    fresh = parts.judge.model.network.init(jax.random.key(0))[0]
    for number, layer in enumerate(parts.activations):
        maps, drawn_maps = (surgery.head_maps(params, config, number) for params in (parts.params, fresh))
        ranks, drawn_ranks = learned.ranks_of_heads(maps), learned.ranks_of_heads(drawn_maps)
        energies = [_energies_of(parts, params, number) for params in (parts.params, fresh)]
        found = {
            "cut": "measures",
            "layer": str(number),
            **_of_vectors(layer["output"], rng),
            "energy": energies[0],
            "energy_drawn": energies[1],
            "rank_qk": ranks[0].tolist(),
            "rank_ov": ranks[1].tolist(),
            "rank_qk_drawn": float(drawn_ranks[0].mean()),
            "rank_ov_drawn": float(drawn_ranks[1].mean()),
            "off_diagonal": learned.off_diagonal_share(maps),
            "off_diagonal_drawn": learned.off_diagonal_share(drawn_maps),
            "sinks": (layer["sinks"][:2] / layer["sinks"][2]).tolist(),
            "explained": {name: _r2_of(parts.fit(number, *pair), rng) for name, pair in FITS.items()},
        }
        if config.position == "rotary":
            found |= {"rank_qk": None, "rank_qk_drawn": None}
            found |= {name: (None, found[name][1]) for name in ("off_diagonal", "off_diagonal_drawn")}
        yield found


def _energies_of(parts: Parts, params: Tree, number: int) -> list[float]:
    """Cross-feature energy of one layer's attention and of its FFN, at some documents."""
    symbols = parts.judge.calibration["documents"][0].symbols[:4, :48]
    x = [f"blocks.{number}.{part}.input" for part in ("attention", "ffn")]
    values = parts.judge.model.network.run_with_cache(params, {}, symbols, names=x)[1]
    found = _energies(parts.judge.frozen, number, params, symbols, *(values[name] for name in x))
    return [float(each) for each in found]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _energies(frozen: Frozen, number: int, params: Tree, symbols: Array, *inputs: Array) -> list[Array]:
    """Shares of the squared Jacobian that join different features, from random rows (`analysis/jacobian.py`)."""
    shares = []
    for part, at in zip(("attention", "ffn"), inputs, strict=True):

        def output(x: Array, part: str = part) -> Array:
            seen: list[Array] = []
            hooks = [(f"blocks.{number}.{part}.input", lambda _: x), (f"blocks.{number}.{part}.output", seen.append)]
            frozen.network.with_hooks(hooks).apply(params, {}, symbols)
            return seen[-1]

        shares.append(cross_shares(output, at, 24, jax.random.key(number))[0])
    return shares


def _of_vectors(values: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Measures of token vectors, with 95% intervals by the bootstrap over tokens of those that a claim asks for."""
    values = values[rng.choice(len(values), min(2000, len(values)), replace=False)]
    resampled = [values[rng.integers(len(values), size=len(values))] for _ in range(30)]
    found: dict[str, Any] = {"vectors": len(values), "features": values.shape[1]} | learned.outliers(values)
    found["participation"] = learned.participation(values)
    for name, measure in (("scale_ratio", learned.scale_ratio), ("correlation", learned.mean_correlation)):
        spread = float(np.std([measure(each) for each in resampled], ddof=1))
        value = measure(values)
        found[name] = [value, value - 1.96 * spread, value + 1.96 * spread]
    return found


def _r2_of(fit: surgery.AffineFit, rng: np.random.Generator) -> list[float]:
    """R2 of an affine fit with its 95% interval, by the bootstrap over held-out tokens."""
    chosen = rng.integers(len(fit.errors), size=(500, len(fit.errors)))
    resampled = 1 - fit.errors[chosen].sum(1) / fit.deviations[chosen].sum(1)
    return [fit.r2, *np.quantile(resampled, [0.025, 0.975]).tolist()]
