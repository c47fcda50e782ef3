"""One label per example, for any TFDS data set with labels: images by patches, tables by columns."""

import abc
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flaxformer_lab.data.source import Source, open_split, open_split_again
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.embedding import ColumnEmbedding, PatchEmbedding
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import ImageClassificationConfig, TabularClassificationConfig
from flaxformer_lab.tasks.examples import Arrays, Examples, stored_examples
from flaxformer_lab.tasks.features import check_labels, classes_of, find_feature, is_image, is_label, is_row
from flaxformer_lab.tasks.task import ACCURACY, Batch, Task, loss_and_accuracy


class Classification(Task):
    """A feature of fixed shape and a label.

    metadata: `feature` and `label` are their names, `num_classes` and `classes` as in `classes_of`.
    """

    primary_metric = ACCURACY
    subject: str  # what the feature is called, where a data set has not another name for it
    _config: ImageClassificationConfig | TabularClassificationConfig

    def __init__(self, config: Any, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = self._read_metadata() if metadata is None else metadata
        self._feature = self.metadata.get("feature", self.subject)
        self._label = self.metadata.get("label", "label")

    def _open(self, split: str) -> Source:
        return open_split(self._config.dataset, split)

    def _read_metadata(self) -> dict[str, Any]:
        source = self._open("train")
        self._feature = find_feature(source, self._config, "feature", self.subject, self._fits)
        label = find_feature(source, self._config, "label", "label", is_label)
        return {"feature": self._feature, "label": label} | classes_of(source, label) | self._metadata_of(source)

    @staticmethod
    @abc.abstractmethod
    def _fits(shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether a feature can be the one that is looked at."""

    @abc.abstractmethod
    def _metadata_of(self, source: Source) -> dict[str, Any]:
        """What the network must know about the training examples besides the classes."""

    @abc.abstractmethod
    def _check(self, name: str, values: np.ndarray, rows: np.ndarray) -> None:
        """Raises DataError where a value of the feature cannot be used. name: of the split."""

    def examples(self, split: str) -> Examples:
        source = self._open(split)
        return stored_examples(source, functools.partial(self._check_examples, source.name))

    def _check_examples(self, name: str, arrays: Arrays, rows: Any) -> None:
        check_labels(name, self._label, self.metadata, arrays[self._label], rows)
        self._check(name, arrays[self._feature], rows)

    def facts(self) -> list[list[Any]]:
        classes = self.metadata.get("classes")
        shown = f" ({', '.join(map(str, classes[:10]))}{' ...' if len(classes) > 10 else ''})" if classes else ""
        return [
            ["data set", self._config.dataset],
            [f"classes of {self._label}", f"{self.metadata['num_classes']}{shown}"],
        ]

    def _raw_values(self, raw: Any) -> np.ndarray:
        """The feature of raw examples: an array of it, or a mapping of features."""
        if isinstance(raw, Mapping):
            if self._feature not in raw:
                raise ConfigError(f"predict: the examples lack {self._feature!r}; they have {', '.join(map(str, raw))}")
            raw = raw[self._feature]
        return np.asarray(raw)

    def _prepared(self, values: np.ndarray) -> Array:
        stored = {self._feature: values, self._label: np.zeros(len(values), np.int32)}
        keys = jax.random.split(jax.random.key(0), len(values))  # evaluation draws nothing
        examples = jax.tree.map(jnp.asarray, stored | {"example_weight": np.ones(len(values))})
        return self.prepare(examples, keys, training=False)["inputs"]

    def _targets(self, examples: Batch) -> Int[Array, " batch"]:
        labels = examples[self._label].astype(jnp.int32)
        classes = self.metadata.get("classes")
        return labels if classes is None else jnp.searchsorted(jnp.asarray(classes, jnp.int32), labels)

    def loss_and_metrics(self, logits: Float[Array, "batch classes"], batch: Batch) -> Metrics:
        return loss_and_accuracy(logits, batch)


@register("task", "image_classification", config=ImageClassificationConfig, has_grid=True)
class ImageClassification(Classification):
    """Patches are the tokens (Dosovitskiy et al. 2021). The values from black to white are scaled to -1..1.

    metadata: `image_shape` with channels, `pixel_range` (black, white), `pixel_type` by NumPy's name.
    """

    subject = "image"
    units = ("images", 1)
    _config: ImageClassificationConfig

    def __init__(self, config: ImageClassificationConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        rows, columns, _ = self.metadata["image_shape"]
        if rows % config.patch_size or columns % config.patch_size:
            fitting = [size for size in range(1, min(rows, columns) + 1) if rows % size == columns % size == 0]
            raise ConfigError(
                f"task.patch_size={config.patch_size} does not divide the {rows} x {columns} images of "
                f"{config.dataset}; choose one of {', '.join(map(str, fitting))}"
            )

    _fits = staticmethod(is_image)

    def _metadata_of(self, source: Source) -> dict[str, Any]:
        shape, dtype = source.features[self._feature]
        limits = self._config.pixel_range or self._pixel_range_of(source)
        shape = shape if len(shape) == 3 else (*shape, 1)
        return {"image_shape": list(shape), "pixel_type": str(dtype), "pixel_range": list(limits)}

    def _pixel_range_of(self, source: Source) -> tuple[int | float, int | float]:
        """The values of black and white: those of the type where it says them, else of the training images.

        Raises:
            ConfigError: neither says them.
        """
        _, dtype = source.features[self._feature]
        if dtype.kind == "b" or dtype == np.uint8:
            return (0, 1) if dtype.kind == "b" else (0, 255)
        values = source.load()[self._feature]
        self._check(source.name, values, np.arange(len(values)))
        low, high = float(values.min()), float(values.max())
        if dtype.kind == "f" and high <= 1 and low >= -1:
            return (0, 1) if low >= 0 else (-1, 1)
        if dtype.kind != "f" and low >= 0:
            return 0, 2 ** max(8, int(high).bit_length()) - 1
        raise ConfigError(
            f"task.dataset={self._config.dataset}: {self._feature} has values of {dtype} from {low:g} to {high:g}, and "
            "nothing says which of them are black and white; set task.pixel_range, like 0,255"
        )

    @property
    def _pixel_range(self) -> tuple[int | float, int | float]:
        return tuple(self.metadata.get("pixel_range", (0, 255)))

    def facts(self) -> list[list[Any]]:
        rows, columns, channels = self.metadata["image_shape"]
        shape, kind = f"{rows} x {columns} x {channels}", self.metadata.get("pixel_type", "uint8")
        scale = "{:g} to {:g} become -1 to 1".format(*self._pixel_range)
        return [*super().facts(), [self._feature, f"{shape} {kind}, {scale}"]]

    def _check(self, name: str, values: np.ndarray, rows: np.ndarray) -> None:
        if values.dtype.kind == "f":
            for place in np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[:1]:
                raise DataError(f"{name}: {self._feature} of row {rows[place]} has a value that is not finite")

    def inputs_of(self, raw: Any) -> Float[Array, "batch rows columns channels"]:
        images = self._raw_values(raw)
        shape, kind = tuple(self.metadata["image_shape"]), np.dtype(self.metadata.get("pixel_type", "uint8"))
        if shape[-1] == 1 and images.shape[1:] == shape[:2]:
            images = images[..., None]
        if images.shape[1:] != shape or images.ndim != 4:
            raise ConfigError(
                f"predict: images of shape {images.shape} do not fit this model, which takes (batch, "
                f"{', '.join(map(str, shape))})"
            )
        low, high = self._pixel_range
        if (images.dtype.kind == "f") != (kind.kind == "f") or not np.all((images >= low) & (images <= high)):
            raise ConfigError(
                f"predict: images of {images.dtype} from {images.min(initial=0):g} to {images.max(initial=0):g} are no "
                f"examples as this model was trained on, {kind} from {low:g} to {high:g}; scale them so, or give "
                "images from -1 to 1 to predict_preprocessed"
            )
        return self._prepared(images)

    def network(self, config: ModelConfig) -> PureNetwork:
        rows, columns, channels = self.metadata["image_shape"]
        class_token = self._config.pooling == "class_token"
        patch_size = self._config.patch_size
        grid = (rows // patch_size, columns // patch_size)

        def build(rngs: Rngs) -> Network:
            embedding = PatchEmbedding(
                patch_size,
                channels,
                config.width,
                bias=config.bias,
                class_token=class_token,
                dtype=config.dtype,
                rngs=rngs,
            )
            return Network(
                config,
                embedding=embedding,
                grid=(math.prod(grid) + 1,) if class_token else grid,
                outputs=self.metadata["num_classes"],
                pooling=self._config.pooling,
                rngs=rngs,
            )

        return functionalize(build)

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        low, high = self._pixel_range
        images = examples[self._feature].astype(jnp.float32)
        images = images.reshape(len(images), *self.metadata["image_shape"])  # an image may lack the axis of channels
        images = (images - low) / ((high - low) / 2) - 1
        if training and self._config.shift:
            images = jax.vmap(_shifted, in_axes=(0, 0, None))(images, keys, self._config.shift)
        return {
            "inputs": images,
            "targets": self._targets(examples),
            "loss_weights": examples["example_weight"],
        }

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *self.metadata["image_shape"]), jnp.float32)


def _shifted(
    image: Float[Array, "rows columns channels"], key: Key[Array, ""], largest: int
) -> Float[Array, "rows columns channels"]:
    """The image moved by up to `largest` pixels each way; its edge pixels fill the gap."""
    padded = jnp.pad(image, ((largest, largest), (largest, largest), (0, 0)), mode="edge")
    row, column = jax.random.randint(key, (2,), 0, 2 * largest + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


@register("task", "tabular_classification", config=TabularClassificationConfig)
class TabularClassification(Classification):
    """Columns of numbers are the tokens, each with a direction of its own (Gorishniy et al. 2021, FT-Transformer).

    metadata: `mean` and `spread` of the columns in training, and `lacking`, the columns that have an indicator.
    """

    subject = "columns"
    units = ("rows", 1)
    _config: TabularClassificationConfig
    _fits = staticmethod(is_row)

    def _open(self, split: str) -> Source:
        seed = self._config.split_seed
        return super()._open(split) if seed is None else open_split_again(self._config.dataset, split, seed)

    def _metadata_of(self, source: Source) -> dict[str, Any]:
        columns = source.load()[self._feature].astype(np.float64)
        self._check(source.name, columns, np.arange(len(columns)))
        missing = np.isnan(columns)
        for column in np.flatnonzero(missing.all(axis=0))[:1]:
            raise DataError(f"{source.name}: {self._feature}[{column}] has no value in any row; leave the column out")
        mean, spread = np.nanmean(columns, axis=0), np.nanstd(columns, axis=0)
        lacking = np.flatnonzero(missing.any(axis=0)).tolist() if self._config.missing == "indicator" else []
        scale = {"mean": mean.tolist(), "spread": np.where(spread > 0, spread, 1.0).tolist()}
        return scale | ({"lacking": lacking} if lacking else {})

    @property
    def _lacking(self) -> list[int]:
        return self.metadata.get("lacking", [])

    def facts(self) -> list[list[Any]]:
        columns = f"{len(self.metadata['mean'])} columns, {'' if self._config.standardised else 'not '}standardised"
        added = f", {len(self._lacking)} indicators of missing values" if self._lacking else ""
        return [*super().facts(), [self._feature, columns + added]]

    def _check(self, name: str, values: np.ndarray, rows: np.ndarray) -> None:
        bad = np.isinf(values) if self._config.missing != "error" else ~np.isfinite(values)
        for place, column in np.argwhere(bad)[:1]:
            value = values[place, column]
            way_out = "; set task.missing=mean or indicator, or mend it" if np.isnan(value) else "; mend it"
            raise DataError(f"{name}: {self._feature}[{column}] of row {rows[place]} is {value}{way_out}")

    def inputs_of(self, raw: Any) -> Float[Array, "batch columns"]:
        values = self._raw_values(raw)
        wanted = len(self.metadata["mean"])
        if values.shape[1:] != (wanted,) or values.dtype.kind not in "biuf":
            raise ConfigError(
                f"predict: rows of shape {values.shape} ({values.dtype}) do not fit this model, which takes (batch, "
                f"{wanted}) numbers"
            )
        self._check("predict", values, np.arange(len(values)))
        return self._prepared(values)

    def network(self, config: ModelConfig) -> PureNetwork:
        columns = len(self.metadata["mean"]) + len(self._lacking)

        def build(rngs: Rngs) -> Network:
            embedding = ColumnEmbedding(columns, config.width, dtype=config.dtype, rngs=rngs)
            classes = self.metadata["num_classes"]
            return Network(config, embedding=embedding, grid=(columns,), outputs=classes, pooling="mean", rngs=rngs)

        return functionalize(build)

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        del keys, training
        columns = examples[self._feature].astype(jnp.float32)
        mean, spread = (jnp.asarray(self.metadata[name], jnp.float32)[None] for name in ("mean", "spread"))
        missing = jnp.isnan(columns)
        columns = jnp.where(missing, mean, columns) if self._config.missing != "error" else columns
        if self._config.standardised:
            columns = (columns - mean) / spread
        if self._lacking:
            columns = jnp.concatenate([columns, missing[:, np.array(self._lacking)].astype(jnp.float32)], axis=1)
        return {
            "inputs": columns,
            "targets": self._targets(examples),
            "loss_weights": examples["example_weight"],
        }

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, len(self.metadata["mean"]) + len(self._lacking)), jnp.float32)
