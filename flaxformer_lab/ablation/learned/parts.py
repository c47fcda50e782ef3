"""What the parts of a pretrained model give for texts that are not judged, and simpler parts that follow from it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxformer_lab.ablation.learned.judges import Judge
from flaxformer_lab.analysis import learned, surgery
from flaxformer_lab.analysis.surgery import Part


class Parts:
    """Of a judge's model, at its calibration texts."""

    def __init__(self, judge: Judge):
        self.judge, self.config, self.params = judge, judge.model.config, judge.model.params

    @functools.cached_property
    def activations(self) -> list[dict[str, np.ndarray]]:
        """Of each layer, by name: values of all calibration tokens [tokens, features].

        Of the documents alone: `weights`, attention's weights [heads, places, places] added up, and `sinks`, sums of
        (attention to the ends, the share of an even attention, 1), weighted by texts.
        """
        names = ("input", "attention.input", "attention.output", "ffn.input", "ffn.output", "output")
        patterns = [f"blocks.*.{name}" for name in (*names, "attention.weights")]
        collected: list[dict[str, list[np.ndarray]]] = [{} for _ in range(self.config.depth)]
        run = self._collect(patterns)
        for kind, batches in self.judge.calibration.items():
            for texts in batches:
                values = run(texts.symbols, texts.valid)
                for number, layer in enumerate(collected):
                    for name in names:
                        layer.setdefault(name, []).append(np.asarray(values[f"blocks.{number}.{name}"])[texts.valid])
                    if kind == "documents":
                        weights = np.asarray(values[f"blocks.{number}.attention.weights"])
                        found = learned.sinks(weights, texts.valid, texts.ends, causal=self.config.causal)
                        layer.setdefault("weights", []).append(self._summed_by_place(weights, texts.valid))
                        layer.setdefault("sinks", []).append(len(weights) * np.array([*found, 1.0]))
        found = [
            {name: np.concatenate(parts) if name in names else sum(parts) for name, parts in layer.items()}
            for layer in collected
        ]
        return [layer | {"change": layer["output"] - layer["input"]} for layer in found]

    def _collect(self, names: Sequence[str]) -> Callable[[Array, Array], dict[str, Array]]:
        """A compiled function of symbols and what is no padding; it computes no outputs, which may be large."""
        run = functools.partial(self.judge.model.network.run_with_cache, names=names)
        collect = jax.jit(lambda params, symbols, valid: run(params, {}, symbols, valid=valid)[1])
        return functools.partial(collect, self.params)

    def _summed_by_place(self, weights: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Weights [heads, places, places] added over texts."""
        summed = np.zeros((weights.shape[1], self.judge.tokens, self.judge.tokens), np.float32)
        kept = np.einsum("bhqk,bq->hqk", weights, valid.astype(np.float32))
        summed[:, : kept.shape[1], : kept.shape[2]] = kept
        return summed

    @functools.cached_property
    def head_outputs(self) -> tuple[list[Array], list[np.ndarray]]:
        """By layer: each head's mean output before W_o, and the sum of squares of what it gives after it."""
        run = self._collect(["blocks.*.attention.z"])
        sums: list[Any] = [0.0] * self.config.depth
        energies: list[Any] = [0.0] * self.config.depth
        count = 0
        for texts in (each for batches in self.judge.calibration.values() for each in batches):
            values = run(texts.symbols, texts.valid)
            count += int(texts.valid.sum())
            for number in range(self.config.depth):
                z = np.asarray(values[f"blocks.{number}.attention.z"])[texts.valid]
                sums[number] = sums[number] + z.sum(0)
                output = np.einsum("nhd,hdc->nhc", z, self.maps(number).output)
                energies[number] = energies[number] + np.sum(output**2, axis=(0, 2))
        return [jnp.asarray(total / count) for total in sums], energies

    def maps(self, number: int) -> surgery.HeadMaps:
        """A layer's attention by heads."""
        return surgery.head_maps(self.params, self.config, number)

    # --------------------------------------------------------------------------------------- simpler parts

    def constant(self, offset: Any) -> Part:
        """The same vector, or number, for every token."""
        offset = jnp.broadcast_to(jnp.asarray(offset, jnp.float32), (self.config.width,))
        return Part(jnp.float32(0), jnp.float32(0), jnp.zeros((1, 1)), offset)

    def mean(self, number: int, part: str) -> Part:
        """What attention or the FFN gives on average."""
        return self.constant(self.activations[number][f"{part}.output"].mean(0))

    @functools.cache  # noqa: B019 these live as long as their process
    def fit(self, number: int, x: str, y: str) -> surgery.AffineFit:
        """The affine map of one of a layer's values that is nearest to another."""
        return surgery.fit_affine(self.activations[number][x], self.activations[number][y])

    def affine(self, number: int, part: str) -> Part:
        """Attention or the FFN as an affine map of what it takes."""
        fit = self.fit(number, f"{part}.input", f"{part}.output")
        return dataclasses.replace(self.constant(fit.offset), matrix=jnp.asarray(fit.matrix))

    def affine_block(self, number: int) -> Part:
        """The whole block as an affine map: what is added to the block's input."""
        fit = self.fit(number, "input", "output")
        matrix = fit.matrix - np.eye(self.config.width, dtype=np.float32)
        return dataclasses.replace(self.constant(fit.offset), matrix=jnp.asarray(matrix))

    def by_feature(self, number: int) -> Part:
        """The FFN as a map that mixes no features."""
        layer = self.activations[number]
        slope, offset = surgery.fit_by_feature(layer["ffn.input"], layer["ffn.output"])
        return dataclasses.replace(self.constant(offset), matrix=jnp.asarray(np.diag(slope)))
