"""The class of the one item of a scene, among clutter: what a model looks at can be compared with where the item is."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flaxformer_lab.functional.boxes import coverage
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import SceneClassificationConfig
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.tasks.features import class_names
from flaxformer_lab.tasks.images import image_network
from flaxformer_lab.tasks.scenes import Scenes
from flaxformer_lab.tasks.task import ACCURACY, Batch, Task, loss_and_accuracy


@register("task", "scene_classification", config=SceneClassificationConfig, has_grid=True)
class SceneClassification(Task):
    """Images from -1 (black) to 1; `objects` of a batch says which pixels lie in the item's box.

    metadata: `num_classes`, and more as in `classes_of`.
    """

    primary_metric = ACCURACY
    units = ("images", 1)

    def __init__(self, config: SceneClassificationConfig, metadata: Mapping[str, Any] | None = None):
        self._config, self._scenes = config, Scenes(config)
        self.metadata = self._scenes.metadata if metadata is None else metadata

    def examples(self, split: str) -> Examples:
        return self._scenes.examples(split)

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        del training
        scene, canvas = self._scenes.draw(examples["index"], keys), self._config.canvas
        return {
            "inputs": 2 * scene.image[..., None] - 1,
            "targets": scene.labels[:, 0],
            "loss_weights": examples["example_weight"],
            "objects": coverage(scene.boxes, scene.valid, canvas, canvas, fine=1),
        }

    def network(self, config: ModelConfig) -> PureNetwork:
        canvas, options = self._config.canvas, {"patch_size": self._config.patch_size, "stem": self._config.stem}
        return image_network(config, (canvas, canvas, 1), outputs=self.metadata["num_classes"], **options)

    def class_names(self) -> list[str]:
        return class_names(self.metadata)

    def loss_and_metrics(self, logits: Float[Array, "batch classes"], batch: Batch) -> Metrics:
        return loss_and_accuracy(logits, batch)

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, self._config.canvas, self._config.canvas, 1), jnp.float32)
