"""Images, each with one label, of any TFDS data set that has both."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from flaxformer_lab.data.image_files import read_image, resize_image
from flaxformer_lab.data.own.contents import SOURCE_ROW
from flaxformer_lab.data.source import Source, open_split, some_examples
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional import augmentation
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import ImageClassificationConfig
from flaxformer_lab.tasks.examples import Arrays, Examples, stored_examples
from flaxformer_lab.tasks.features import (
    check_labels,
    class_names,
    class_numbers,
    classes_of,
    content_of,
    facts_of_classes,
    find_feature,
    is_image,
    is_label,
    require_classes,
    warn_of_change,
)
from flaxformer_lab.tasks.images import image_network
from flaxformer_lab.tasks.task import ACCURACY, Batch, Task, loss_and_accuracy


@register("task", "image_classification", config=ImageClassificationConfig, has_grid=True)
class ImageClassification(Task):
    """Patches are the tokens (Dosovitskiy et al. 2021). The values from black to white are scaled to -1..1.

    metadata: `feature` and `label`, the names of the image and of its class; `num_classes` and more as in `classes_of`
    and `content_of`; `image_shape` with channels, `pixel_range` (black, white), `pixel_type` by NumPy's name.
    """

    primary_metric = ACCURACY
    units = ("images", 1)

    def __init__(self, config: ImageClassificationConfig, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = self._read_metadata() if metadata is None else metadata
        self._feature = self.metadata.get("feature", "image")
        self._label = self.metadata.get("label", "label")
        rows, columns, _ = self._shape
        if rows % config.patch_size or columns % config.patch_size:
            fitting = [size for size in range(1, min(rows, columns) + 1) if rows % size == columns % size == 0]
            border = f" with a border of {config.border}" if config.border else ""
            raise ConfigError(
                f"task.patch_size={config.patch_size} does not divide the {rows} x {columns} images of "
                f"{config.dataset}{border}; choose one of {', '.join(map(str, fitting))}"
            )
        if config.cutout > min(rows, columns):
            raise ConfigError(
                f"task.cutout={config.cutout} is more than the {rows} x {columns} pixels of an image; choose a "
                f"smaller one, like {min(rows, columns) // 4}"
            )

    def _read_metadata(self) -> dict[str, Any]:
        source = self._open("train")
        self._feature = find_feature(source, self._config, "feature", "image", is_image)
        label = find_feature(source, self._config, "label", "label", is_label)
        found = {"feature": self._feature, "label": label} | classes_of(source, label) | self._metadata_of(source)
        return found | content_of(source)

    def _open(self, split: str) -> Source:
        source = open_split(self._config.dataset, split)
        if self._config.image_size is None:
            self._refuse_differing(source)
        return dataclasses.replace(source, image_size=self._config.image_size)

    def _refuse_differing(self, source: Source) -> None:
        """Raises ConfigError where the only images are of differing size."""
        shapes = {name: feature.shape for name, feature in source.info.features.items()}
        if any(is_image(shape, dtype) for shape, dtype in source.features.values()):
            return
        for name in [name for name, shape in shapes.items() if isinstance(shape, tuple) and None in shape[:2]][:1]:
            differing = (source.info.metadata or {}).get("differing") or []
            shown = " but ".join(f"{file} has {rows} x {columns} pixels" for file, rows, columns in differing)
            raise ConfigError(
                f"task.dataset={self._config.dataset}: {name} differs in size from example to example"
                f"{f' ({shown})' if shown else ''}; set task.image_size to the rows and columns that all are stretched "
                "to, like 32,32"
            )

    def _metadata_of(self, source: Source) -> dict[str, Any]:
        """What the network must know about the training images besides the classes."""
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
        arrays = source.load()
        values = arrays[self._feature]
        self._check(source.name, values, arrays.get(SOURCE_ROW, np.arange(len(values))))
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
    def _shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of what the network is given: the border included."""
        rows, columns, channels = self.metadata["image_shape"]
        return rows + 2 * self._config.border, columns + 2 * self._config.border, channels

    @property
    def _pixel_range(self) -> tuple[int | float, int | float]:
        return tuple(self.metadata.get("pixel_range", (0, 255)))

    def facts(self) -> list[list[Any]]:
        rows, columns, channels = self.metadata["image_shape"]
        shape, kind = f"{rows} x {columns} x {channels}", self.metadata.get("pixel_type", "uint8")
        scale = "{:g} to {:g} become -1 to 1".format(*self._pixel_range)
        data = [["data set", self._config.dataset], facts_of_classes(self._label, self.metadata)]
        return [*data, [self._feature, f"{shape} {kind}, {scale}"]]

    def examples(self, split: str) -> Examples:
        source = self._open(split)
        warn_of_change(source, self.metadata)
        require_classes(source, source.info.features[self._label], self.metadata)
        if split == "train" and self._config.training_examples is not None:
            source = some_examples(source, self._config.training_examples)
        return stored_examples(source, functools.partial(self._check_examples, source.name))

    def _check_examples(self, name: str, arrays: Arrays, rows: Any) -> None:
        rows = arrays.get(SOURCE_ROW, rows)
        check_labels(name, self._label, self.metadata, arrays[self._label], rows)
        self._check(name, arrays[self._feature], rows)

    def _check(self, name: str, values: np.ndarray, rows: np.ndarray) -> None:
        """Raises DataError where an image cannot be used. name: of the split."""
        if values.dtype.kind == "f":
            for place in np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[:1]:
                raise DataError(f"{name}: {self._feature} of row {rows[place]} has a value that is not finite")

    def _raw_feature(self, raw: Any) -> Any:
        """The feature of raw examples, which are that or a mapping of features."""
        if not isinstance(raw, Mapping):
            return raw
        if self._feature not in raw:
            raise ConfigError(f"predict: the examples lack {self._feature!r}; they have {', '.join(map(str, raw))}")
        return raw[self._feature]

    def inputs_of(self, raw: Any) -> Float[Array, "batch rows columns channels"]:
        images = self._raw_images(self._raw_feature(raw))
        shape, kind = tuple(self.metadata["image_shape"]), np.dtype(self.metadata.get("pixel_type", "uint8"))
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
        return self.preprocess({self._feature: jnp.asarray(images)})

    def _raw_images(self, raw: Any) -> Shaped[np.ndarray, "..."]:
        """An array from images, or from the path of an image file, or from a list of these."""
        raw = [raw] if isinstance(raw, str | os.PathLike) else raw
        raw = raw if isinstance(raw, list | tuple) else np.asarray(raw)
        if (isinstance(raw, np.ndarray) and raw.ndim == 0) or len(raw) == 0:
            return np.asarray(raw)
        images = [self._raw_image(each) for each in raw]
        shapes = sorted({image.shape for image in images})
        if len(shapes) > 1:
            raise ConfigError(
                f"predict: images of shapes {shapes[0]} and {shapes[1]} in one batch, which must be of one size"
            )
        return np.stack(images)

    def _raw_image(self, raw: Any) -> Shaped[np.ndarray, "..."]:
        """An array, or the image of a file in the type and with the channels of the training images."""
        channels, size = self.metadata["image_shape"][-1], self._config.image_size
        if isinstance(raw, str | os.PathLike):
            image, kind = read_image(Path(raw)), self.metadata.get("pixel_type", "uint8")
            if image.dtype != kind or image.shape[-1] > channels:
                colour = "grey" if image.shape[-1] == 1 else "coloured"
                raise ConfigError(
                    f"predict: {raw} is {colour} ({image.dtype}), and this model was trained on images with {channels} "
                    f"channels ({kind}); convert it"
                )
            image = np.broadcast_to(image, (*image.shape[:2], channels))
        else:
            image = np.asarray(raw)
            image = image[..., None] if channels == 1 and image.ndim == 2 else image
        return resize_image(image, size) if size and image.ndim == 3 else image

    def network(self, config: ModelConfig) -> PureNetwork:
        task = self._config
        options = {"patch_size": task.patch_size, "stem": task.stem, "pooling": task.pooling}
        return image_network(config, self._shape, outputs=self.metadata["num_classes"], **options)

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        images, config = self.preprocess(examples), self._config
        batch = {"targets": self._targets(examples), "loss_weights": examples["example_weight"]}
        if not training:
            return batch | {"inputs": augmentation.shifted(images, keys, config.evaluation_shift)}
        images = augmentation.cropped(images, keys, config.crop)
        images = augmentation.flipped(images, keys) if config.flip else images
        images = augmentation.shifted(images, keys, config.shift)
        images = augmentation.cut_out(images, keys, config.cutout)
        return augmentation.mixed(batch | {"inputs": images}, keys, config.mixup)

    def preprocess(self, features: Batch) -> Array:
        low, high = self._pixel_range
        images = features[self._feature].astype(jnp.float32)
        # An image may lack the axis of channels.
        images = images.reshape(images.shape[0], *self.metadata["image_shape"])
        images = (images - low) / ((high - low) / 2) - 1
        border = (self._config.border,) * 2
        return jnp.pad(images, ((0, 0), border, border, (0, 0)), constant_values=-1.0) if border[0] else images

    def class_names(self) -> list[str]:
        return class_names(self.metadata)

    def _targets(self, examples: Batch) -> Int[Array, " batch"]:
        return class_numbers(self.metadata, examples[self._label])

    def loss_and_metrics(self, logits: Float[Array, "batch classes"], batch: Batch) -> Metrics:
        metrics = loss_and_accuracy(logits, batch)
        if "other_targets" not in batch:
            return metrics
        other = {"targets": batch["other_targets"], "loss_weights": batch["other_weights"]}
        return jax.tree.map(jnp.add, metrics, loss_and_accuracy(logits, other))

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *self._shape), jnp.float32)

    def raw_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        dtype = jax.dtypes.canonicalize_dtype(self.metadata.get("pixel_type", "uint8"))
        return {self._feature: jax.ShapeDtypeStruct((batch_size, *self.metadata["image_shape"]), dtype)}
