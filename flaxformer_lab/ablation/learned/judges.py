"""What a cut model is judged by: sentence embeddings by rated pairs, causal language models by nats a token."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import stats

from flaxformer_lab.ablation.learned.config import LearnedConfig
from flaxformer_lab.ablation.learned.rated import RatedPairs, package_folder, passages, rated_pairs
from flaxformer_lab.analysis.surgery import Frozen, Layer, apply_cut
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.conversion import Converted
from flaxformer_lab.models.network import Tree
from flaxformer_lab.models.pretrained.folder import PretrainedFolder, read_folder
from flaxformer_lab.models.pretrained.tokenizer import TextTokenizer, padding_of
from flaxformer_lab.task_config import PretrainedConfig
from flaxformer_lab.tasks.pretrained import Pretrained

LENGTHS = (3, 4, 6, 16, 48, 64, 96, 128, 160, 256)  # texts are padded to one of these, each compiled once
ROWS = 512
CALIBRATION_TOKENS = 160  # that a document is cut to where parts are looked at
CALIBRATION_PASSAGES, CALIBRATION_ROWS = 24, 8
NEIGHBOURS = 5
LOGITS = 2**27  # numbers in memory at once
RESAMPLES = 1000
Values = Sequence[float | int] | Float[np.ndarray, " items"]


class Texts(NamedTuple):
    """valid: what is no padding. ends: tokens that attention may use as a sink, special ones or the first."""

    symbols: Int[np.ndarray, "texts tokens"]
    valid: Bool[np.ndarray, "texts tokens"]
    ends: Bool[np.ndarray, "texts tokens"]


class Judge(ABC):
    """A pretrained model with the texts that it is judged by. file: where a row for each judged cut is kept.

    calibration: texts that are not judged, by kind; attention is looked at on `documents`.
    tokens: those of the longest text.
    """

    file: str
    calibration: dict[str, list[Texts]]
    tokens: int

    def __init__(self, folder: PretrainedFolder):
        self.model: Converted = folder.convert()
        self.frozen = Frozen(self.model.network)

    @abstractmethod
    def judge(self, cuts: list[Layer], params: Tree) -> dict[str, Any]:
        """What the cut model gives for the judged texts."""

    @abstractmethod
    def scores(self, intact: Mapping[str, Any], cut: Mapping[str, Any]) -> dict[str, Any]:
        """What that says beside the intact model's: `scores`, {name: value, difference, low, high, p}."""


def make_judge(config: LearnedConfig) -> Judge:
    """The judge of the model that the config names.

    Raises:
        ConfigError: a model that is for something else, or that lacks its tokenizer.
    """
    path = package_folder(config.package, config.folder) if config.package else Path(config.folder)
    folder = read_folder(path)
    longest = min(config.longest, folder.max_length or config.longest)
    task = Pretrained(PretrainedConfig(folder=str(path), dataset=config.dataset, sequence_length=longest))
    if task.kind == "next_token":
        return Nats(folder, task, config.passages)
    if "pooling" in folder.settings and folder.tokenizer is not None:
        return Ratings(folder, config, longest)
    raise ConfigError(
        f"{path} has {task.metadata['settings']['architectures'][0]}; cuts are judged for causal language models, and "
        "for sentence-transformers with a tokenizer.json: choose such a folder"
    )


# ------------------------------------------------------------------------------------------------- ratings


class Ratings(Judge):
    """Sentence vectors by how their cosines follow human ratings, and by the neighbours that passages keep."""

    file = "cosines.csv"

    def __init__(self, folder: PretrainedFolder, config: LearnedConfig, longest: int):
        super().__init__(folder)
        options = {"padding": padding_of(folder.settings), "longest": longest, "lowercase": folder.lowercase}
        self.tokenizer = TextTokenizer(folder.tokenizer, **options)
        self.sets: tuple[RatedPairs, ...] = rated_pairs()
        self.symbols = {each.name: self.tokenizer.batch(each.texts) for each in self.sets}
        self.symbols["passages"] = self.tokenizer.batch(passages(config.passages, config.dataset))

    def judge(self, cuts: list[Layer], params: Tree) -> dict[str, Any]:
        """The cosine of every rated pair, by set, and each passage's neighbours."""
        cosines = {}
        for each in self.sets:
            vectors = self.vectors(self.symbols[each.name], cuts, params)
            cosines[each.name] = np.sum(vectors[each.pairs[:, 0]] * vectors[each.pairs[:, 1]], axis=1)
        speeches = self.vectors(self.symbols["passages"], cuts, params)
        likeness = speeches @ speeches.T - 2 * np.eye(len(speeches))
        return {
            "neighbours": np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBOURS].tolist(),
            "cosines": {name: np.round(values, 4).tolist() for name, values in cosines.items()},
        }

    def vectors(self, symbols: Int[np.ndarray, "texts tokens"], cuts: list[Layer], params: Tree) -> np.ndarray:
        """The sentence vector of each text, [texts, width]."""
        found = np.zeros((len(symbols), self.model.config.width), np.float32)
        for rows, texts in self._batches(symbols):
            found[rows] = apply_cut(self.frozen, self.model.config, params, cuts, texts.symbols, texts.valid)
        return found

    def _batches(self, symbols: np.ndarray) -> Iterator[tuple[np.ndarray, Texts]]:
        padding = self.tokenizer.padding
        counts = (symbols != padding).sum(1)
        shortest = 0
        for longest in LENGTHS:
            chosen = np.flatnonzero((counts > shortest) & (counts <= longest))
            for rows in np.array_split(chosen, max(1, -(-len(chosen) // ROWS))) if len(chosen) else ():
                padded = np.full((len(rows), longest), padding, np.int32)
                width = min(longest, symbols.shape[1])
                padded[:, :width] = symbols[rows, :width]
                ends = np.isin(padded, np.concatenate([self.tokenizer.prefix, self.tokenizer.suffix]))
                yield rows, Texts(padded, padded != padding, ends)
            shortest = longest

    @functools.cached_property
    def _others(self) -> dict[str, np.ndarray]:
        """Other documents that gensim has, and single words of them."""
        file = package_folder("gensim", "test/test_data") / "lee_background.cor"
        documents = file.read_text(encoding="utf-8", errors="replace").splitlines()
        words = sorted({word for line in documents for word in line.split() if word.isalpha() and word.islower()})
        chosen = np.random.default_rng(0).choice(len(words), 400, replace=False)
        long = self.tokenizer.batch(documents[:32])[:, :CALIBRATION_TOKENS]
        return {"documents": long, "words": self.tokenizer.batch([words[n] for n in sorted(chosen)])}

    @functools.cached_property
    def calibration(self) -> dict[str, list[Texts]]:
        return {name: [texts for _, texts in self._batches(symbols)] for name, symbols in self._others.items()}

    @functools.cached_property
    def tokens(self) -> int:
        return max(symbols.shape[1] for symbols in (*self.symbols.values(), self._others["documents"]))

    def scores(self, intact: Mapping[str, Any], cut: Mapping[str, Any]) -> dict[str, Any]:
        pairs = zip(intact["neighbours"], cut["neighbours"], strict=True)
        kept = float(np.mean([len({*before} & {*after}) / len(before) for before, after in pairs]))
        cosines = intact["cosines"], cut["cosines"]
        scores = {each.name: paired_difference(each, *(values[each.name] for values in cosines)) for each in self.sets}
        return {"kept": round(kept, 4), "scores": scores}


def paired_difference(rated: RatedPairs, before: Values, after: Values) -> dict[str, float | None]:
    """The correlation after a cut and its difference from before, by resampling pairs; ranks are those of all pairs."""
    ranked = lambda values: stats.rankdata(values) if rated.ranks else np.asarray(values, np.float64)  # noqa: E731
    ratings, before, after = (ranked(values) for values in (rated.ratings, before, after))

    def correlations(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        mean_x, mean_y = weights @ x, weights @ ratings
        covariance = weights @ (x * ratings) - mean_x * mean_y
        return covariance / np.sqrt((weights @ x**2 - mean_x**2) * (weights @ ratings**2 - mean_y**2))

    even, counts = _resampled(len(ratings))
    value = float(correlations(after, even)[0])
    difference = value - float(correlations(before, even)[0])
    return _with_interval(value, difference, correlations(after, counts) - correlations(before, counts))


def _resampled(number: int) -> tuple[Float[np.ndarray, "1 items"], Float[np.ndarray, "resamples items"]]:
    """Even weights of so many items, and weights of resamples of them."""
    even = np.full((1, number), 1 / number)
    return even, np.random.default_rng(0).multinomial(number, even[0], size=RESAMPLES) / number


def _with_interval(value: float, difference: float, resampled: np.ndarray) -> dict[str, float | None]:
    """With the 95% interval and p of a normal law whose standard error is that of the resampled differences.

    p: of no difference; None where there is none at all.
    """
    error = float(np.std(resampled, ddof=1))
    half = float(stats.norm.ppf(0.975)) * error
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error > 1e-9 else None
    return {"value": value, "difference": difference, "low": difference - half, "high": difference + half, "p": p}


# ---------------------------------------------------------------------------------------------------- nats


class Nats(Judge):
    """A causal language model by nats a token, on passages of a test split; calibrated on those of validation."""

    file = "nats.csv"

    def __init__(self, folder: PretrainedFolder, task: Pretrained, number: int):
        task.tokenizer  # noqa: B018  its error comes before all work
        super().__init__(folder)
        self._task = task
        passages = self._passages("test", number)
        self.tokens = passages["inputs"].shape[1]
        self.counts = passages["loss_weights"].sum(1).astype(np.float64)
        vocabulary = self.model.network.vocabulary
        parts = -(-len(self.counts) // max(2, LOGITS // (self.tokens * vocabulary)))
        size = -(-len(self.counts) // parts)
        rows = np.arange(size * parts) % len(self.counts)  # the last batch is filled up with passages without weight
        filled = {name: array[rows] for name, array in passages.items()}
        filled["loss_weights"][len(self.counts) :] = 0
        self._batches = [{name: array[k * size :][:size] for name, array in filled.items()} for k in range(parts)]

    def _passages(self, split: str, number: int) -> dict[str, np.ndarray]:
        """Evenly spread windows as the task prepares them."""
        examples = self._task.examples(split)
        chosen = np.unique(np.linspace(0, examples.number - 1, number).astype(int))
        batch = examples.read(examples.evaluation_indices(chosen)) | {"example_weight": np.ones(len(chosen))}
        prepared = self._task.prepare(jax.tree.map(jnp.asarray, batch), None, training=False)
        return {name: np.asarray(array) for name, array in prepared.items()}

    def judge(self, cuts: list[Layer], params: Tree) -> dict[str, Any]:
        """The nats of each passage, over all of its tokens."""
        found = [_nats(self.frozen, self.model.config, params, cuts, batch) for batch in self._batches]
        return {"nats": np.round(np.concatenate(found)[: len(self.counts)].astype(np.float64), 4).tolist()}

    @functools.cached_property
    def calibration(self) -> dict[str, list[Texts]]:
        passages = self._passages("validation", CALIBRATION_PASSAGES)
        counts = passages["loss_weights"].sum(1)
        symbols = passages["inputs"][counts == counts.max()]  # without the end of the text, which is filled up
        valid = np.ones(symbols.shape, bool)
        texts = Texts(symbols, valid, valid & (np.arange(self.tokens) == 0)[None])
        parts = -(-len(symbols) // CALIBRATION_ROWS)  # attention's weights of all layers are in memory at once
        return {"documents": [Texts(*each) for each in zip(*(np.array_split(x, parts) for x in texts), strict=True)]}

    def scores(self, intact: Mapping[str, Any], cut: Mapping[str, Any]) -> dict[str, Any]:
        return {"scores": {"nats": difference_of_nats(self.counts, intact["nats"], cut["nats"])}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _nats(frozen: Frozen, config: Any, params: Tree, cuts: list[Layer], batch: dict[str, Array]) -> Array:
    """-log softmax(logits)[target] of each passage [passages], added over its tokens."""
    inputs, targets = batch["inputs"], batch["targets"]
    logits = apply_cut(frozen, config, params, cuts, inputs, jnp.ones(inputs.shape, bool))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=2)[..., 0]
    return jnp.sum(batch["loss_weights"] * (jax.nn.logsumexp(logits, axis=2) - chosen), axis=1)


def difference_of_nats(
    counts: Float[np.ndarray, " passages"], before: Values, after: Values
) -> dict[str, float | None]:
    """Nats a token after a cut and their difference from before, by resampling passages of `counts` tokens.

    All but p is infinite where the cut model's outputs are not finite.
    """
    if not np.all(np.isfinite(after)):
        return dict.fromkeys(("value", "difference", "low", "high"), float("inf")) | {"p": None}
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    (even, resampled), per_token = _resampled(len(counts)), lambda weights, nats: weights @ nats / (weights @ counts)
    value, difference = (float(per_token(even, nats)[0]) for nats in (after, after - before))
    return _with_interval(value, difference, per_token(resampled, after - before))
