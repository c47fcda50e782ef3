"""One label per example, for any TFDS data set with labels: images by patches, tables by columns."""

import abc
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxformer_lab.data.source import Source, open_split
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.losses import accuracy, cross_entropy
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.embedding import ColumnEmbedding, PatchEmbedding
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import ImageClassificationConfig, TabularClassificationConfig
from flaxformer_lab.tasks.examples import Examples, stored_examples
from flaxformer_lab.tasks.task import ACCURACY, Batch, Task


class Classification(Task):
    """A feature of fixed shape, `subject`, and a `label`."""

    primary_metric = ACCURACY
    subject: str
    _config: ImageClassificationConfig | TabularClassificationConfig

    def __init__(self, config: Any, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = self._read_metadata() if metadata is None else metadata

    def _read_metadata(self) -> dict[str, Any]:
        source = open_split(self._config.dataset, "train")
        missing = {self.subject, "label"} - set(source.features)
        if missing:
            raise ConfigError(
                f"task.dataset={self._config.dataset} has no {' and no '.join(sorted(missing))} of fixed shape, which "
                f"{self._config.name} needs; it has {', '.join(source.features) or 'none'}"
            )
        return {"num_classes": source.num_classes("label")} | self._metadata_of(source)

    @abc.abstractmethod
    def _metadata_of(self, source: Source) -> dict[str, Any]:
        """What the network must know about the training examples besides the number of classes."""

    def examples(self, split: str) -> Examples:
        return stored_examples(open_split(self._config.dataset, split))

    def loss_and_metrics(self, logits: Float[Array, "batch classes"], batch: Batch) -> Metrics:
        arguments = (logits, batch["targets"], batch["loss_weights"])
        return {"loss": cross_entropy(*arguments), "accuracy": accuracy(*arguments)}


@register("task", "image_classification", config=ImageClassificationConfig, has_grid=True)
class ImageClassification(Classification):
    """Patches are the tokens (Dosovitskiy et al. 2021). Pixels 0..255 are scaled to -1..1."""

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

    def _metadata_of(self, source: Source) -> dict[str, Any]:
        shape, _ = source.features["image"]
        return {"image_shape": list(shape)}

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
        images = examples["image"].astype(jnp.float32) / 127.5 - 1
        if training and self._config.shift:
            images = jax.vmap(_shifted, in_axes=(0, 0, None))(images, keys, self._config.shift)
        return {
            "inputs": images,
            "targets": examples["label"].astype(jnp.int32),
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
    """Columns of numbers are the tokens, each with a direction of its own (Gorishniy et al. 2021, FT-Transformer)."""

    subject = "columns"
    units = ("rows", 1)
    _config: TabularClassificationConfig

    def _metadata_of(self, source: Source) -> dict[str, Any]:
        columns = source.load()["columns"].astype(np.float64)
        if columns.ndim != 2:
            raise ConfigError(f"task.dataset={self._config.dataset} has columns of shape {columns.shape[1:]}, not (n,)")
        spread = columns.std(axis=0)
        return {"mean": columns.mean(axis=0).tolist(), "spread": np.where(spread > 0, spread, 1.0).tolist()}

    def network(self, config: ModelConfig) -> PureNetwork:
        columns = len(self.metadata["mean"])

        def build(rngs: Rngs) -> Network:
            embedding = ColumnEmbedding(columns, config.width, dtype=config.dtype, rngs=rngs)
            classes = self.metadata["num_classes"]
            return Network(config, embedding=embedding, grid=(columns,), outputs=classes, pooling="mean", rngs=rngs)

        return functionalize(build)

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        del keys, training
        columns = examples["columns"].astype(jnp.float32)
        if self._config.standardised:
            mean, spread = (jnp.asarray(self.metadata[name], jnp.float32)[None] for name in ("mean", "spread"))
            columns = (columns - mean) / spread
        return {
            "inputs": columns,
            "targets": examples["label"].astype(jnp.int32),
            "loss_weights": examples["example_weight"],
        }

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, len(self.metadata["mean"])), jnp.float32)
