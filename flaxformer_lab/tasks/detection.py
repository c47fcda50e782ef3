"""Objects in images: the detectors, and the tasks on which they are compared."""

import abc
import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxformer_lab.data.image_files import read_image, resize_image
from flaxformer_lab.data.own.address import CONTENT
from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional import detection as formulas
from flaxformer_lab.functional.average_precision import DetectionScores
from flaxformer_lab.functional.detection import Detections, Losses, Objects
from flaxformer_lab.functional.metrics import Average, Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.detection import STRIDE, Backbone, PlaceHead, QueryEmbedding, QueryHead, RegionHead
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.registry import lookup, register
from flaxformer_lab.task_config import DetectionConfig, DetectorConfig, ScenesConfig
from flaxformer_lab.tasks.examples import Arrays, Examples, stored_examples
from flaxformer_lab.tasks.features import content_of, require_classes, warn_of_change
from flaxformer_lab.tasks.scenes import Scenes
from flaxformer_lab.tasks.task import Batch, Keys, PrimaryMetric, Task

AP = PrimaryMetric("ap", "AP", higher_is_better=True, limits=(0.0, 1.0))
FILE_NAMES = ("file", "image/filename")  # features of coco:FOLDER and of tensorflow-datasets
Outputs = dict[str, Any]  # of one image


class Detector(abc.ABC):
    """A way to find objects: the head, the losses and the detections of one image.

    image: rows, columns and channels. The body between the backbone and the head is the run's model.
    """

    nms: ClassVar[float | None] = 0.5
    two_sequences: ClassVar[bool] = False

    def __init__(self, config: DetectorConfig, image: tuple[int, ...], classes: int):
        self._config, self._image, self._classes = config, image, classes
        self._grid = (image[0] // STRIDE, image[1] // STRIDE)
        nms = config.nms or self.nms
        self._select = {"number": config.detections, "nms": None if nms == 1 else nms}

    def network(self, config: ModelConfig) -> PureNetwork:
        """Raises ConfigError where the model takes other sequences, or does not return a vector for each token."""
        sequences = getattr(lookup("model", config.name).build, "two_sequences", False)
        if sequences != self.two_sequences or not config.keeps_tokens:
            other = "encoder_decoder" if self.two_sequences else "cnn_2d or transformer"
            changed = ", whose outputs are other tokens or features than its inputs" * (sequences == self.two_sequences)
            raise ConfigError(
                f"task.detector={self._config.detector} cannot use model.name={config.name}{changed}; choose "
                f"model.name={other}"
            )
        if config.width % 4:
            raise ConfigError(f"model.width={config.width} must be a multiple of 4 for task.name={self._config.name}")

        def build(rngs: Rngs) -> Network:
            backbone = Backbone(self._image[2], config.width, bias=config.bias, dtype=config.dtype, rngs=rngs)
            embedding, grid = self.embedding(config, backbone, rngs)
            head = self.head(config, rngs)
            return Network(config, embedding=embedding, grid=grid, outputs=0, head=head, rngs=rngs)

        return functionalize(build)

    def embedding(self, config: ModelConfig, backbone: Backbone, rngs: Rngs) -> tuple[nnx.Module, Any]:
        """What makes the body's inputs of images, and the grid of its tokens."""
        del config, rngs
        return backbone, self._grid

    @abc.abstractmethod
    def head(self, config: ModelConfig, rngs: Rngs) -> nnx.Module:
        """What makes outputs of the body's."""

    @abc.abstractmethod
    def losses(self, outputs: Outputs, objects: Objects) -> Losses:
        """The parts of the loss of one image, whose sum it is."""

    @abc.abstractmethod
    def detections(self, outputs: Outputs) -> Detections:
        """What is found in one image."""


class DETR(Detector):
    """Queries attend to the image and to one another (Carion et al. 2020); the loss is of the last block alone."""

    nms, two_sequences = None, True

    def embedding(self, config: ModelConfig, backbone: Backbone, rngs: Rngs) -> tuple[nnx.Module, Any]:
        queries = self._config.queries
        embedding = QueryEmbedding(backbone, self._grid, queries, config.width, dtype=config.dtype, rngs=rngs)
        return embedding, {"source": self._grid, "target": (queries,)}

    def head(self, config: ModelConfig, rngs: Rngs) -> nnx.Module:
        return QueryHead(config.width, self._classes, bias=config.bias, rngs=rngs)

    def losses(self, outputs: Outputs, objects: Objects) -> Losses:
        return formulas.set_losses(outputs["logits"], outputs["boxes"], objects)

    def detections(self, outputs: Outputs) -> Detections:
        return formulas.set_detections(outputs["logits"], outputs["boxes"], **self._select)


class Dense(Detector):
    """Every place of the grid says what is there: one stage, no anchors (Tian et al. 2019)."""

    def head(self, config: ModelConfig, rngs: Rngs) -> nnx.Module:
        return PlaceHead(config.width, self._classes, bias=config.bias, rngs=rngs)

    def losses(self, outputs: Outputs, objects: Objects) -> Losses:
        return formulas.place_losses(outputs["logits"], outputs["code"], outputs["quality"], objects, self._grid)

    def detections(self, outputs: Outputs) -> Detections:
        arrays = outputs["logits"], outputs["code"], outputs["quality"]
        return formulas.place_detections(*arrays, self._grid, **self._select)


class FasterRCNN(Detector):
    """Anchors become proposals, and proposals objects (Ren et al. 2015), trained together.

    Unlike the paper's, training adds no true boxes to the proposals, and no draw decides which of them count.
    """

    @property
    def _anchors(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self._config.anchor_sizes, self._config.anchor_ratios

    def head(self, config: ModelConfig, rngs: Rngs) -> nnx.Module:
        options = {"grid": self._grid, "anchors": self._anchors, "image": self._image[:2], "bias": config.bias}
        return RegionHead(config.width, self._classes, regions=self._config.proposals, rngs=rngs, **options)

    def losses(self, outputs: Outputs, objects: Objects) -> Losses:
        anchors = formulas.grid_anchors(self._grid, *self._anchors, self._image[:2])
        first = formulas.anchor_losses(outputs["anchor_scores"], outputs["anchor_code"], anchors, objects)
        proposals = Detections(**outputs["proposals"])
        second = formulas.region_losses(outputs["logits"], outputs["code"], proposals, objects)
        return first | second

    def detections(self, outputs: Outputs) -> Detections:
        arrays = outputs["logits"], outputs["code"], Detections(**outputs["proposals"])
        return formulas.region_detections(*arrays, **self._select)


DETECTORS: dict[str, type[Detector]] = {"detr": DETR, "faster_rcnn": FasterRCNN, "dense": Dense}


class ObjectTask(Task):
    """Objects are found in images from -1 to 1.

    metadata: `image_shape` with channels, `num_classes` and, where they have names, `class_names`.
    """

    primary_metric = AP
    units = ("images", 1)
    metadata: Mapping[str, Any]
    _config: DetectorConfig

    @functools.cached_property
    def detector(self) -> Detector:
        """The detector of the config, for these images and classes."""
        image = tuple(self.metadata["image_shape"])
        return DETECTORS[self._config.detector](self._config, image, self.metadata["num_classes"])

    def network(self, config: ModelConfig) -> PureNetwork:
        return self.detector.network(config)

    def loss_and_metrics(self, outputs: Outputs, batch: Batch) -> Metrics:
        """The loss and its parts, means over images; and `DetectionScores`."""
        objects, weights = batch["objects"], batch["loss_weights"]
        losses = jax.vmap(self.detector.losses)(outputs, objects)
        losses = {"loss": sum(losses.values()), **losses}
        found = self.detections(outputs)
        columns, rows = self.metadata["image_shape"][1], self.metadata["image_shape"][0]
        scores = DetectionScores(
            *(found.boxes, found.scores, found.labels, objects.boxes, objects.labels, batch["kind"], weights),
            unit=(float(columns), float(rows)),
            bounds=tuple(map(float, self._config.size_bounds)),
        )
        average = lambda each: Average(jnp.sum(each * weights), jnp.sum(weights))  # noqa: E731
        return {name: average(each) for name, each in losses.items()} | {"detections": scores}

    def detections(self, outputs: Outputs) -> Detections:
        """What is found in each image of a batch."""
        return jax.vmap(self.detector.detections)(outputs)

    def predictions_of(self, outputs: Outputs) -> dict[str, Any]:
        """`boxes`, `scores` and `labels` of each image, from the highest score down; and the `outputs` themselves."""
        return {**self.detections(outputs)._asdict(), "outputs": outputs}

    def outputs_of(self, predictions: dict[str, Any]) -> Outputs:
        return predictions["outputs"]

    def originals(self, split: str, number: int) -> list[tuple[str, tuple[int, int]]]:
        """A name, and the rows and columns, of the first images of a split, as they were before they were stretched."""
        return [(f"{split} {row}", tuple(self.metadata["image_shape"][:2])) for row in range(number)]

    def class_names(self) -> list[str]:
        names = self.metadata.get("class_names")
        return list(names or map(str, range(self.metadata["num_classes"])))

    def inputs_of(self, raw: Any) -> Float[Array, "batch rows columns channels"]:
        """Of images from 0 to 255 [batch, rows, columns, channels], the path of an image file, or a list of paths.

        Each is stretched to the size that the model was trained on; a coloured one becomes grey where it saw grey ones.
        """
        raw = [raw] if isinstance(raw, str | os.PathLike) else list(raw)
        images = [read_image(Path(each)) if isinstance(each, str | os.PathLike) else np.asarray(each) for each in raw]
        rows, columns, channels = self.metadata["image_shape"]
        for given, image in zip(raw, images, strict=True):
            if image.ndim != 3 or 0 in image.shape or image.shape[-1] not in (1, 3):
                raise ConfigError(
                    f"predict: an image of shape {image.shape} is not (rows, columns, 1 or 3 channels), each at least 1"
                )
            if image.dtype != np.uint8:
                name = given if isinstance(given, str | os.PathLike) else "predict"
                raise ConfigError(f"{name}: images of {image.dtype}; give whole numbers from 0 to 255 (uint8)")
        if channels == 1:
            images = [np.rint(image.mean(axis=-1, keepdims=True)).astype(np.uint8) for image in images]
        images = [np.broadcast_to(image, (*image.shape[:2], channels)) for image in images]
        # Whole numbers, as those of training are once they are stretched.
        sized = np.stack([resize_image(image, (rows, columns)) for image in images])
        return _scaled(jnp.asarray(sized, jnp.float32) / 255)

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *self.metadata["image_shape"]), jnp.float32)


@register("task", "scenes", config=ScenesConfig, has_grid=True)
class SceneDetection(ObjectTask):
    """Items in scenes that are drawn for every update (`functional/scenes.py`)."""

    def __init__(self, config: ScenesConfig, metadata: Mapping[str, Any] | None = None):
        self._config, self._scenes = config, Scenes(config)
        image = {"image_shape": [config.canvas, config.canvas, 1]}
        self.metadata = image | self._scenes.metadata if metadata is None else metadata

    def examples(self, split: str) -> Examples:
        return self._scenes.examples(split)

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        del training
        scene = self._scenes.draw(examples["index"], keys)
        return {
            "inputs": _scaled(scene.image[..., None]),
            "objects": Objects(scene.boxes, scene.labels, scene.valid),
            "kind": scene.valid.astype(jnp.int32),
            "loss_weights": examples["example_weight"],
        }


@register("task", "detection", config=DetectionConfig, has_grid=True)
class ImageDetection(ObjectTask):
    """Objects in images of a data set, which has `image` and `objects` as tensorflow-datasets has COCO and VOC.

    Images are stretched to `task.image_size`. Crowds, objects that VOC calls difficult, and boxes without area, which
    own files may not have, are not learned, and detections of them neither count nor are wrong.
    """

    def __init__(self, config: DetectionConfig, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = self._read_metadata() if metadata is None else metadata

    def _read_metadata(self) -> dict[str, Any]:
        source = open_split(self._config.dataset, "train")
        objects = dict(source.info.features.items()).get("objects")
        parts = getattr(objects, "feature", None)
        lacking = [name for name in ("bbox", "label") if parts is None or name not in parts]
        image = source.info.features["image"] if "image" in source.info.features else None
        if lacking or image is None:
            raise ConfigError(
                f"task.dataset={self._config.dataset} has no {'image' if image is None else 'objects/' + lacking[0]}, "
                f"which detection needs; it has {', '.join(source.info.features)}; choose voc/2007 or coco:FOLDER"
            )
        metadata = source.info.metadata or {}
        if metadata.get("most_objects", 0) > self._config.capacity:
            raise ConfigError(
                f"task.capacity={self._config.capacity}: {metadata['most_objects_file']} has "
                f"{metadata['most_objects']} objects; set task.capacity={metadata['most_objects']}"
            )
        names = parts["label"].names
        aside = [name for name in ("is_crowd", "is_difficult") if name in parts]
        found = {"image_shape": [*self._config.image_size, image.shape[-1]], "num_classes": len(names)}
        return found | {"class_names": names, "aside": aside} | content_of(source)

    def examples(self, split: str) -> Examples:
        capacity = {f"objects/{part}": (self._config.capacity,) for part in ("bbox", "label", *self.metadata["aside"])}
        source = open_split(self._config.dataset, split, capacity)
        warn_of_change(source, self.metadata)
        require_classes(source, source.info.features["objects"].feature["label"], self.metadata)
        source = dataclasses.replace(source, image_size=tuple(self._config.image_size))
        return stored_examples(source, functools.partial(self._check, source.name))

    def originals(self, split: str, number: int) -> list[tuple[str, tuple[int, int]]]:
        """The name is that of the image's file, where the data set says it."""
        found = []
        for row, record in enumerate(itertools.islice(open_split(self._config.dataset, split).records(), number)):
            name = next((record[each] for each in FILE_NAMES if each in record), f"{split} {row}")
            found.append((name, record["image"].shape[:2]))
        return found

    def _check(self, name: str, arrays: Arrays, rows: Any) -> None:
        """Raises DataError where an object has a box or a class that cannot be; own files can be corrected."""
        boxes, shape = arrays["objects/bbox"], arrays["objects/bbox_shape"]
        shown = np.arange(boxes.shape[1])[None] < shape
        size = boxes[..., 2:] - boxes[..., :2]
        wrong = {
            "has no area": (size <= 0).any(axis=-1) & self._is_own,
            "lies outside of its image": ((boxes < 0) | (boxes > 1)).any(axis=-1),
            "is not finite": ~np.isfinite(boxes).all(axis=-1),
        }
        for what, where in wrong.items():
            for row, place in np.argwhere(where & shown)[:1]:
                raise DataError(
                    f"{name}: box {place} of example {rows[row]}, (y0, x0, y1, x1) = {boxes[row, place].tolist()}, "
                    f"{what}; correct it, or take it out of the data set"
                )
        labels = arrays["objects/label"]
        for row, place in np.argwhere(shown & ((labels < 0) | (labels >= self.metadata["num_classes"])))[:1]:
            raise DataError(
                f"{name}: object {place} of example {rows[row]} has the class {labels[row, place]}, which is none of "
                f"0 to {self.metadata['num_classes'] - 1}; correct it"
            )

    def facts(self) -> list[list[Any]]:
        rows, columns, channels = self.metadata["image_shape"]
        found = [["data set", self._config.dataset], ["images", f"stretched to {rows} x {columns} x {channels}"]]
        return found if self._is_own else [*found, ["boxes without area", "neither learned nor counted"]]

    @property
    def _is_own(self) -> bool:
        return CONTENT in self.metadata

    def prepare(self, examples: Batch, keys: Keys, *, training: bool) -> Batch:
        del keys, training
        y0, x0, y1, x1 = jnp.moveaxis(examples["objects/bbox"], -1, 0)
        shown = jnp.arange(self._config.capacity)[None] < examples["objects/bbox_shape"]
        aside = (x1 <= x0) | (y1 <= y0)
        for name in self.metadata["aside"]:
            aside = aside | examples[f"objects/{name}"].astype(bool)
        kind = jnp.where(shown, 1 + aside.astype(jnp.int32), 0)
        boxes = jnp.stack([x0, y0, x1, y1], axis=-1)
        return {
            "inputs": self.preprocess(examples),
            "objects": Objects(boxes, examples["objects/label"].astype(jnp.int32), kind == 1),
            "kind": kind,
            "loss_weights": examples["example_weight"],
        }

    def preprocess(self, features: Batch) -> Array:
        return _scaled(features["image"].astype(jnp.float32) / 255)


def _scaled(images: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """From 0..1 to -1..1."""
    return 2 * images - 1
