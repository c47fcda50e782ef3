"""Scenes as a source of examples: what items they are made of, and one scene for each number of an example."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flaxformer_lab.data.source import open_split, some_rows
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.scenes import Items, Scene, draw_scene
from flaxformer_lab.task_config import SceneConfig
from flaxformer_lab.tasks.examples import Examples, generated_examples
from flaxformer_lab.tasks.features import class_names, classes_of, is_image
from flaxformer_lab.tasks.probe import FIRST
from flaxformer_lab.tasks.task import SPLITS

INK = 0.25  # of an image's brightest value: what is darker is no part of an item


class Scenes:
    """The scenes of a config: the items of each split make the scenes of that split.

    A scene follows from the run's seed, the step and the example's number, so no two runs train on the same ones.
    """

    def __init__(self, config: SceneConfig):
        self._config = config

    @functools.cached_property
    def metadata(self) -> dict:
        """`num_classes`, and `class_names` where classes have names.

        Raises:
            ConfigError: the data set has no images with labels.
        """
        source = open_split(self._config.items_dataset, "train")
        features = source.features
        fits = {"image": lambda: is_image(*features["image"]), "label": lambda: features["label"][1].kind in "iu"}
        for name, is_it in fits.items():
            if name not in features or not is_it():
                raise ConfigError(
                    f"task.items_dataset={self._config.items_dataset} has no {name} of fixed shape, which items need; "
                    f"it has {', '.join(source.info.features)}; choose lab_digits, fashion_mnist or the like"
                )
        found = classes_of(source, "label")
        number = min(self._config.classes or found["num_classes"], found["num_classes"])
        names = {"class_names": found["class_names"][:number]} if "class_names" in found else {}
        return {"num_classes": number} | names

    def class_names(self) -> list[str]:
        """What each class is called."""
        return class_names(self.metadata)

    @functools.cached_property
    def _items(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, tuple[int, int]]]:
        """Images, boxes and labels of the items of all splits; of each split, the first of its items, and how many."""
        images, labels, ranges, first = [], [], {}, 0
        for split in SPLITS:
            source = open_split(self._config.items_dataset, split)
            read = source.read(some_rows(source, self._config.item_images))
            chosen = read["label"] < (self._config.classes or math.inf)
            image = read["image"][chosen]
            images.append(image.reshape(*image.shape[:3], -1).mean(axis=-1))  # grey
            labels.append(read["label"][chosen].astype(np.int32))
            ranges[split] = (first, len(labels[-1]))
            first += len(labels[-1])
        images = np.concatenate(images).astype(np.float32)
        images = images / np.maximum(images.max(axis=(1, 2), keepdims=True), 1)
        return images, ink_boxes(images), np.concatenate(labels), ranges

    def examples(self, split: str) -> Examples:
        """Numbers, from which `draw` makes scenes."""
        return generated_examples(self._config.evaluation_examples, first=FIRST[split], endless=split == "train")

    def draw(self, index: Int[Array, " batch"], keys: Key[Array, " batch"]) -> Scene:
        """The scenes of these examples, with one key for each; every array has the batch as its first axis."""
        config = self._config
        images, boxes, labels, ranges = self._items
        split = (index >= FIRST["validation"]).astype(jnp.int32) + (index >= FIRST["test"])
        first, number = (jnp.asarray([ranges[name][which] for name in SPLITS])[split] for which in (0, 1))
        arrays = [jnp.asarray(array) for array in (images, boxes, labels)]

        def draw(key: Key[Array, ""], first: Array, number: Array) -> Scene:
            return draw_scene(
                key,
                Items(*arrays, first, number),
                canvas=config.canvas,
                count=config.items,
                size=config.item_size,
                scale=config.scale,
                overlap=config.overlap,
                clutter=config.clutter,
                noise=config.noise,
            )

        return jax.vmap(draw)(jax.vmap(jax.random.fold_in)(keys, index), first, number)


def ink_boxes(images: Float[np.ndarray, "items rows columns"]) -> Float[np.ndarray, "items 4"]:
    """The smallest box around what is bright in each image, as shares of its sides; the whole of an empty image."""
    ink = images > INK * images.max(axis=(1, 2), keepdims=True)
    boxes = np.empty((len(images), 4), np.float32)
    for axis, place in ((1, 0), (2, 1)):  # over the rows: which columns have ink
        has = ink.any(axis=axis)
        size = has.shape[1]
        boxes[:, place] = np.where(has.any(axis=1), has.argmax(axis=1), 0) / size
        boxes[:, place + 2] = np.where(has.any(axis=1), size - has[:, ::-1].argmax(axis=1), size) / size
    return boxes
