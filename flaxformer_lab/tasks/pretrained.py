"""A pretrained model's own task, by its head: next or masked tokens, classes of texts or images, sentence vectors."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key, UInt8

from flaxformer_lab.data.image_files import read_image
from flaxformer_lab.data.own.address import CONTENT
from flaxformer_lab.data.own.builder import content_digest
from flaxformer_lab.data.own.contents import SOURCE_ROW
from flaxformer_lab.data.own.text import read_text
from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional.metrics import Average, Correlation, Metrics
from flaxformer_lab.model_config import ModelConfig, TransformerConfig
from flaxformer_lab.models.conversion import architecture_of, planned
from flaxformer_lab.models.network import PureNetwork, functionalize
from flaxformer_lab.models.pretrained.folder import read_folder, stand_ins, with_classes
from flaxformer_lab.models.pretrained.images import ImagePreprocessor
from flaxformer_lab.models.pretrained.plan import Plan
from flaxformer_lab.models.pretrained.tokenizer import TextTokenizer, padding_of
from flaxformer_lab.parsing import flatten, override, parse
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import PretrainedConfig
from flaxformer_lab.tasks.examples import Arrays, Examples, stored_examples, token_windows
from flaxformer_lab.tasks.features import check_labels, find_feature, find_text, is_image, is_label
from flaxformer_lab.tasks.task import LOSS, Batch, Keys, Task, loss_and_accuracy

KINDS = {  # of heads, by the end of the architecture's name
    "LMHeadModel": "next_token",
    "ForCausalLM": "next_token",
    "ForMaskedLM": "masked",
    "ForSequenceClassification": "text_classes",
    "ForTokenClassification": "token_classes",
    "ForImageClassification": "images",
    "ForImageClassificationWithTeacher": "images",
    "Model": "vectors",
}
USUAL_LENGTH = 128


@register("task", "pretrained", config=PretrainedConfig)
class Pretrained(Task):
    """Inputs are symbols [batch, tokens], pairs of texts [batch, 2, tokens], or images as the model was made for.

    metadata: what the folder says (settings, shapes of the tensors, tokenizer, ...), so that a run does not need it; of
    `tsv:PATH` also `content`, its digest.
    """

    primary_metric = LOSS

    def __init__(self, config: PretrainedConfig, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = self._read_metadata() if metadata is None else metadata
        self.units = ("images" if self.kind == "images" else "tokens", 1 if self.kind == "images" else self._tokens)

    def _read_metadata(self) -> dict[str, Any]:
        folder = read_folder(self._config.folder)
        tensors = folder.stand_ins()
        settings = dict(folder.settings)
        settings["architectures"] = [architecture_of(settings, tensors)]
        return {
            "settings": settings,
            "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "tokenizer": folder.tokenizer,
            "lowercase": folder.lowercase,
            "max_length": folder.max_length,
            "preprocessing": folder.preprocessing,
            **({} if folder.tokenizer is None else _special(folder.tokenizer)),
            **_content_of_lines(self._config.dataset),
        }

    @functools.cached_property
    def kind(self) -> str:
        """One of KINDS: what the head gives."""
        architecture = self.metadata["settings"]["architectures"][0]
        return max((len(end), kind) for end, kind in KINDS.items() if architecture.endswith(end))[1]

    @functools.cached_property
    def plan(self) -> Plan:
        """Where the tensors go."""
        tensors, settings = stand_ins(self.metadata["shapes"]), self.metadata["settings"]
        plan, _ = planned(tensors, settings, allow_extra=True)
        if plan.state:
            raise ConfigError(
                f"task.folder={self._config.folder}: {settings['architectures'][0]} uses BatchNorm, which runs of "
                "pretrained models do not support; flaxformer_lab.models.conversion.from_huggingface reads them"
            )
        if self._config.classes is None:
            return plan
        if self.kind not in ("text_classes", "token_classes", "images"):
            raise ConfigError(
                f"task.classes={self._config.classes}: {settings['architectures'][0]} has no classes; set it to none"
            )
        return planned(with_classes(tensors, plan.table, self._config.classes), settings, allow_extra=True)[0]

    @property
    def _tokens(self) -> int:
        longest = self.metadata["max_length"]
        tokens = self._config.sequence_length or min(longest or USUAL_LENGTH, USUAL_LENGTH)
        if longest and tokens > longest:
            raise ConfigError(
                f"task.sequence_length={tokens} is more than the {longest} tokens that the model has; choose fewer"
            )
        return tokens

    def network(self, config: ModelConfig) -> PureNetwork:
        if not isinstance(config, TransformerConfig):
            raise ConfigError(f"model.name={config.name} is not what was pretrained; choose model.name=transformer")
        pure = functionalize(functools.partial(self.plan.build, config))
        return _of_pairs(pure) if self.kind == "vectors" else pure

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """Of the folder.

        Raises:
            ConfigError: it has none, or the package tokenizers is missing.
        """
        if self.metadata["tokenizer"] is None:
            raise ConfigError(
                f"{self._config.folder} has no tokenizer.json, so only symbols can be given; write one with "
                "tokenizer.save_pretrained of a fast tokenizer"
            )
        options = {"padding": self._padding, "longest": self.metadata["max_length"] or self._tokens}
        return TextTokenizer(self.metadata["tokenizer"], lowercase=self.metadata.get("lowercase", False), **options)

    @property
    def _padding(self) -> int:
        return padding_of(self.metadata["settings"])

    # --------------------------------------------------------------------------------------------- data

    def examples(self, split: str) -> Examples:
        self._refuse_without_data()
        if self.kind in ("next_token", "masked"):
            return self._windows(split)
        return self._images(split) if self.kind == "images" else self._rows(split)

    def _refuse_without_data(self) -> None:
        """Raises ConfigError where the head is for something else than what data here are judged by."""
        settings = self.metadata["settings"]
        if self.kind == "token_classes" or (self.kind == "vectors" and "pooling" not in settings):
            raise ConfigError(
                f"{settings['architectures'][0]} has no data here to be evaluated or trained on, or to check an "
                "exported file on; use predict and run_with_cache"
            )
        if self.kind not in ("text_classes", "images"):
            return
        problem = settings.get("problem_type") if self._config.classes is None else None
        if problem not in (None, "single_label_classification") or self._num_classes == 1:
            raise ConfigError(
                f"{settings['architectures'][0]} with problem_type={problem} and {self._num_classes} outputs does not "
                "choose one of several classes, which is what data here are for; use predict, or set task.classes to "
                "2 or more for a new head"
            )

    def _windows(self, split: str) -> Examples:
        dataset = self._config.dataset or "lab_speeches"
        source = open_split(dataset, split)
        feature = find_text(source, self._config)
        symbols = self.tokenizer.symbols("\n".join(record[feature] for record in source.records()))
        ahead = self.kind == "next_token" and not self.metadata["prefix"]
        size = self._tokens - self._num_special
        if len(symbols) < size + ahead:
            raise ConfigError(
                f"{split} of {dataset} has {len(symbols)} symbols, fewer than {size}; choose a shorter one"
            )
        return token_windows(symbols, size, lookahead=int(ahead))

    @property
    def _num_special(self) -> int:
        prefix, suffix = len(self.metadata["prefix"]), len(self.metadata["suffix"])
        return max(0, prefix - 1) if self.kind == "next_token" else prefix + suffix

    def _rows(self, split: str) -> Examples:
        path = _file_of(self._config.dataset, split)
        columns = 3 if self.kind == "vectors" else 2
        rows = _read_rows(path, columns)
        texts = [text for row in rows.values() for text in row[:-1]]
        symbols = self.tokenizer.batch(texts, self._tokens)
        arrays = {"symbols": symbols.reshape(len(rows), -1, symbols.shape[1])[:, slice(None) if columns == 3 else 0]}
        if columns == 3:
            arrays["rating"] = np.array([_number(row[-1], where) for where, row in rows.items()], np.float32)
        else:
            arrays["label"] = np.array([self._class(row[-1], where) for where, row in rows.items()], np.int32)
        take = lambda arrays, chosen: {name: array[chosen] for name, array in arrays.items()}  # noqa: E731
        return Examples(
            number=len(rows),
            num_bytes=sum(array.nbytes for array in arrays.values()),
            load=lambda: arrays,
            take=take,
            read=functools.partial(take, arrays),
        )

    def _class(self, name: str, where: str) -> int:
        names = self.class_names() or []
        number = names.index(name) if name in names else int(name) if name.isdecimal() else -1
        if not 0 <= number < self._num_classes:
            raise DataError(f"{where}: {name!r} is no class of this model, which has {self._num_classes}")
        return number

    @property
    def _num_classes(self) -> int:
        return self._config.classes or self.plan_outputs

    @functools.cached_property
    def plan_outputs(self) -> int:
        """How many outputs the head has."""
        heads = [self.plan.table[path].names[0] for path in self.plan.table if path.endswith("bias") and "head" in path]
        return self.metadata["shapes"][heads[-1]][0]

    def _images(self, split: str) -> Examples:
        dataset = self._config.dataset or "lab_digits"
        size = self.metadata["settings"]["image_size"]
        source = dataclasses.replace(open_split(dataset, split), image_size=(size, size))
        feature = find_feature(source, self._config, "feature", "image", is_image)
        label = find_feature(source, self._config, "label", "label", is_label)
        shape, dtype = source.features[feature]
        if dtype != np.uint8 or (*shape, 1)[2] not in (1, self._num_channels):
            raise ConfigError(
                f"task.dataset={dataset}: {feature} of shape {shape} has values of {dtype}; this model takes uint8 "
                f"with 1 or {self._num_channels} channels: choose another task.feature or data set"
            )
        source = dataclasses.replace(source, examples=_Fitted(source.examples, feature, self._preprocessor))

        def check(arrays: Arrays, rows: Any) -> None:
            classes, rows = {"num_classes": self._num_classes}, arrays.get(SOURCE_ROW, rows)
            check_labels(source.name, label, classes, arrays[label], rows)

        examples = stored_examples(source, check)
        rename = lambda arrays: {"image": arrays[feature], "label": arrays[label]}  # noqa: E731

        def take(arrays: Arrays, rows: Any) -> Arrays:
            return rename(examples.take(arrays, rows))

        return dataclasses.replace(examples, take=take, read=lambda rows: rename(examples.read(rows)))

    # ------------------------------------------------------------------------------------ loss and metrics

    def prepare(self, examples: Batch, keys: Keys, *, training: bool) -> Batch:
        del training
        weights = examples["example_weight"]
        if self.kind == "images":
            images = self._preprocessor.normalise(examples["image"])
            return {"inputs": images, "targets": examples["label"].astype(jnp.int32), "loss_weights": weights}
        symbols = examples["symbols"].astype(jnp.int32)
        if self.kind in ("text_classes", "vectors"):
            target = {"targets": examples["label"]} if self.kind == "text_classes" else {"targets": examples["rating"]}
            return {"inputs": symbols, "valid": symbols != self._padding, "loss_weights": weights} | target
        weights = examples["loss_weights"] * weights[:, None]
        prefix, suffix = (jnp.asarray(self.metadata[name], jnp.int32) for name in ("prefix", "suffix"))
        around = lambda x, before, after: jnp.pad(x, ((0, 0), (before, after)))  # noqa: E731
        if self.kind == "next_token":
            if not len(prefix):
                return {"inputs": symbols[:, :-1], "targets": symbols[:, 1:], "loss_weights": weights}
            first = jnp.broadcast_to(prefix[None], (len(symbols), len(prefix)))
            inputs = jnp.concatenate([first, symbols[:, :-1]], axis=1)
            targets, weights = around(symbols, len(prefix) - 1, 0), around(weights, len(prefix) - 1, 0)
            return {"inputs": inputs, "targets": targets, "loss_weights": weights}
        inputs, chosen = jax.vmap(self._masked)(symbols, keys)
        ends = [jnp.broadcast_to(each[None], (len(symbols), len(each))) for each in (prefix, suffix)]
        inputs = jnp.concatenate([ends[0], inputs, ends[1]], axis=1)
        targets, weights = (around(each, len(prefix), len(suffix)) for each in (symbols, weights * chosen))
        return {"inputs": inputs, "targets": targets, "loss_weights": weights}

    def _masked(
        self, symbols: Int[Array, " tokens"], key: Key[Array, ""]
    ) -> tuple[Int[Array, " tokens"], Float[Array, " tokens"]]:
        """Chooses tokens; 80% of them become the mask, 10% a random symbol, 10% stay (Devlin et al. 2019, 3.1)."""
        choose, kind, draw = jax.random.split(key, 3)
        chosen = jax.random.bernoulli(choose, self._config.mask_rate, symbols.shape)
        kind = jax.random.uniform(kind, symbols.shape)
        random = jax.random.randint(draw, symbols.shape, 0, self.metadata["settings"]["vocab_size"])
        changed = jnp.where(kind < 0.8, self.metadata["mask"], jnp.where(kind < 0.9, random, symbols))
        return jnp.where(chosen, changed, symbols), chosen.astype(jnp.float32)

    def loss_and_metrics(self, outputs: Array, batch: Batch) -> Metrics:
        if self.kind != "vectors":
            return loss_and_accuracy(outputs, batch)
        first, second = (each / jnp.linalg.norm(each, axis=-1, keepdims=True) for each in jnp.moveaxis(outputs, 1, 0))
        cosine, weights = jnp.sum(first * second, axis=-1), batch["loss_weights"]
        low, high = self._config.ratings
        rating = (batch["targets"] - low) / (high - low)
        return {
            "loss": Average(jnp.sum(weights * jnp.square(cosine - rating)), jnp.sum(weights)),
            "correlation": Correlation(cosine, rating, weights),
            "rank_correlation": Correlation(cosine, rating, weights, ranks=True),
        }

    # ------------------------------------------------------------------------------------------- inputs

    def inputs_of(self, raw: Any) -> Any:
        """Symbols of a text or of several, padded; images at the model's size; other arrays as they are."""
        if self.kind == "images":
            return self._images_of(raw)
        texts = [raw] if isinstance(raw, str) else raw
        if isinstance(texts, Sequence) and texts and all(isinstance(text, str) for text in texts):
            return self.tokenizer.batch(texts)
        return np.asarray(raw, np.int32)

    def _images_of(self, raw: Any) -> Float[Array, "batch rows columns channels"]:
        images = [self._image_of(each) for each in ([raw] if isinstance(raw, str | Path) else raw)]
        if not images:
            raise ConfigError("predict: there is no image; give at least one")
        return self._preprocessor.normalise(np.stack(images))

    def _image_of(self, raw: Any) -> UInt8[np.ndarray, "rows columns channels"]:
        """An image, or that of a file, at the model's size and with its channels."""
        image = read_image(Path(raw)) if isinstance(raw, str | Path) else np.asarray(raw)
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ConfigError("predict: images must be uint8 [rows, columns, channels], or paths of image files")
        image = image[..., None] if image.ndim == 2 else image
        if image.shape[2] not in (1, self._num_channels):
            raise ConfigError(
                f"predict: an image of shape {image.shape} has {image.shape[2]} channels; this model takes "
                f"{self._num_channels}, or 1 for grey: convert it"
            )
        return self._preprocessor.fit(np.broadcast_to(image, (*image.shape[:2], self._num_channels)))

    @property
    def _num_channels(self) -> int:
        return self.metadata["settings"]["num_channels"]

    @functools.cached_property
    def _preprocessor(self) -> ImagePreprocessor:
        return ImagePreprocessor(self.metadata["preprocessing"], self.metadata["settings"])

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        if self.kind == "images":
            settings = self.metadata["settings"]
            shape = (batch_size, settings["image_size"], settings["image_size"], settings["num_channels"])
            return jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.ShapeDtypeStruct((batch_size, self._tokens), jnp.int32)

    def input_misfit(self, inputs: Any) -> str | None:
        if self.kind == "images":
            return super().input_misfit(inputs)
        dimensions = (2, 3) if self.kind == "vectors" else (2,)
        longest = self.metadata["max_length"] or inputs.shape[-1]
        if inputs.ndim in dimensions and inputs.shape[-1] <= longest and jnp.issubdtype(inputs.dtype, jnp.integer):
            return None
        return (
            f"inputs of shape {tuple(inputs.shape)} ({inputs.dtype}) do not fit this model, which takes texts, or "
            f"symbols [batch, tokens] of at most {longest} tokens"
        )

    def valid_of(self, inputs: Any) -> Any:
        if self.kind in ("images", "next_token"):  # a causal model does not see the padding after a text
            return None
        return np.asarray(inputs) != self._padding

    def unpadded(self, batch: Batch) -> Batch:
        """The first text of each pair, all cut to the length of the shortest."""
        if "valid" not in batch:
            return batch
        symbols, valid = (np.asarray(batch[name]) for name in ("inputs", "valid"))
        symbols, valid = (each[:, 0] if each.ndim == 3 else each for each in (symbols, valid))
        shortest = int(valid.sum(axis=1).min())
        rest = {name: value for name, value in batch.items() if name != "valid"}
        return rest | {"inputs": jnp.asarray(symbols[:, :shortest])}

    def class_names(self) -> list[str] | None:
        names = self.metadata["settings"].get("id2label")
        if not isinstance(names, Mapping) or self._config.classes is not None:
            return None
        return [str(names[key]) for key in sorted(names, key=int)]

    @property
    def context(self) -> int | None:
        return (self.metadata["max_length"] or self._tokens) if self.kind == "next_token" else None

    def encode(self, text: str) -> Int[np.ndarray, " length"]:
        """Symbols of a prompt, after those that a text begins with."""
        return np.concatenate([np.array(self.metadata["prefix"], np.int32), self.tokenizer.symbols(text)])

    def decoder(self, prompt: Integer[np.ndarray, " length"]) -> Callable[[Integer[np.ndarray, " length"]], str]:
        """A function that decodes what follows a prompt, piece by piece.

        A symbol's text may depend on the ones before: SentencePiece drops the space before a text's first word.
        """
        seen: list[int] = []
        given = [""]

        def decode(symbols: Integer[np.ndarray, " length"]) -> str:
            seen.extend(int(symbol) for symbol in symbols)
            text = self.tokenizer.text(seen)
            if text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character whose other bytes are to come
                text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            piece, given[0] = text[len(given[0]) :], text
            return piece

        decode(prompt)
        return decode

    def facts(self) -> list[list[Any]]:
        settings = self.metadata["settings"]
        return [["pretrained", f"{settings['architectures'][0]} in {self._config.folder}"]]


def fine_tuning(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A run's tree of keys, with the model of the folder that its task names, and that folder as what it starts from.

    Keys that the tree has stay; a new head (`task.classes`) starts at random.

    Raises:
        ConfigError: no folder, or as in `read_folder`.
    """
    task = parse(PretrainedConfig, tree["task"], "task")
    if "folder" not in tree["task"]:
        raise ConfigError(
            "task.folder is missing: name the folder of a pretrained model, as --config.task.folder=models/gpt2 "
            "(docs/pretrained.md)"
        )
    folder = str(Path(task.folder).expanduser().absolute())
    model = dataclasses.asdict(Pretrained(dataclasses.replace(task, folder=folder)).plan.config)
    for key, value in flatten(tree.get("model", {})).items():
        model = override(model, key, value)
    start = {"init_from": folder} | ({} if task.classes is None else {"init_only": ["embedding", "body"]})
    task_tree = {**tree["task"], "folder": folder}
    return {**tree, "task": task_tree, "model": model, "training": start | tree.get("training", {})}


def _of_pairs(network: PureNetwork) -> PureNetwork:
    """The network, which also takes several texts of an example, [batch, texts, tokens]."""

    def apply(params: Any, model_state: Any, inputs: Array, *, valid: Any = None, keys: Any = None, **options: Any):
        if inputs.ndim < 3:
            return network.apply(params, model_state, inputs, valid=valid, keys=keys, **options)
        texts = inputs.shape[1]
        keys = None if keys is None else jax.vmap(lambda key: jax.random.split(key, texts))(keys).reshape(-1)
        flat = [None if each is None else each.reshape(-1, each.shape[-1]) for each in (inputs, valid)]
        outputs, model_state = network.apply(params, model_state, flat[0], valid=flat[1], keys=keys, **options)
        return outputs.reshape(-1, texts, *outputs.shape[1:]), model_state

    return dataclasses.replace(network, apply=apply)


class _Fitted(Sequence):
    """Examples whose image is at the model's size; read as TFDS's sources are."""

    def __init__(self, examples: Sequence, feature: str, preprocessor: ImagePreprocessor):
        self._examples, self._feature, self._preprocessor = examples, feature, preprocessor

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        name, fit = self._feature, self._preprocessor.fit
        return [example | {name: fit(example[name])} for example in self._examples.__getitems__(indices)]


def _special(tokenizer: str) -> dict[str, Any]:
    """What a tokenizer puts around a text, and its mask.

    Raises:
        ConfigError: as `TextTokenizer`.
    """
    made = TextTokenizer(tokenizer, padding=0, longest=USUAL_LENGTH)
    return {"prefix": made.prefix.tolist(), "suffix": made.suffix.tolist(), "mask": made.mask}


def _content_of_lines(dataset: str | None) -> dict[str, str]:
    """The digest of `tsv:PATH`; nothing for other data.

    Raises:
        DataError: a file cannot be read.
    """
    kind, _, name = (dataset or "").partition(":")
    if kind != "tsv" or not name:
        return {}
    path = Path(name).expanduser()
    return {CONTENT: content_digest(path, sorted(path.glob("*.tsv")))}


def _file_of(dataset: str | None, split: str) -> Path:
    kind, _, name = (dataset or "").partition(":")
    if kind != "tsv" or not name:
        raise ConfigError(
            f"task.dataset={dataset} of this model must be tsv:PATH, a file of lines with tabs (docs/pretrained.md)"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / f"{split}.tsv"
    elif split == "train":
        raise ConfigError(
            f"task.dataset={dataset} is one file, which is only for evaluation; training needs a folder with train.tsv"
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist; task.dataset={dataset}")
    return path


def _read_rows(path: Path, columns: int) -> dict[str, list[str]]:
    """What stands between the tabs of each line, by the line's name in errors."""
    rows = {}
    # Not `splitlines`, which also cuts at the separators of Unicode that a text may hold.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        row = [part.strip() for part in line.split("\t")]
        if len(row) != columns:
            raise DataError(f"{path}, line {number}: {len(row)} columns between tabs, not {columns}: {line[:60]!r}")
        rows[f"{path}, line {number}"] = row
    if not rows:
        raise DataError(f"{path} has no lines")
    return rows


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {text!r} is no rating, which is a finite number")
    return number
