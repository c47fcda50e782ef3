"""Clicks and the like: a probability for each record, from its fields; judged by the area under the ROC curve."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.data.field_builders import GROUP
from flaxformer_lab.data.source import Source
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.losses import binary_cross_entropy
from flaxformer_lab.functional.metrics import AUC, AUCError, Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.field_network import field_network
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import ClickConfig
from flaxformer_lab.tasks.examples import Arrays
from flaxformer_lab.tasks.tables import TabularClassification
from flaxformer_lab.tasks.task import Batch, PrimaryMetric


@register("task", "click", config=ClickConfig)
class Click(TabularClassification):
    """The second class of a table is predicted; the fields are its categories and its numbers.

    `auc_error` is the standard error of the AUC: whole groups of records, or else records, are drawn with replacement.
    """

    primary_metric = PrimaryMetric("auc", "AUC", higher_is_better=True, limits=(0, 1))
    outputs = 1
    _config: ClickConfig

    def _read_target(self, source: Source, arrays: Arrays) -> dict[str, Any]:
        found = super()._read_target(source, arrays)
        if found["num_classes"] != 2:
            raise ConfigError(
                f"task.dataset={self._config.dataset} has {found['num_classes']} classes and task.name=click takes "
                "two; set task.name=tabular_classification"
            )
        return found

    def network(self, config: ModelConfig) -> PureNetwork:
        return field_network(self._config, config, self._num_columns, self._levels)

    def prepare(self, examples: Batch, keys: Any, *, training: bool) -> Batch:
        batch = super().prepare(examples, keys, training=training)
        if training:
            return batch
        rows = jnp.arange(len(batch["targets"]))
        return batch | {GROUP: examples.get(GROUP, examples.get("row", rows))}

    def loss_and_metrics(self, outputs: Float[Array, "batch 1"], batch: Batch) -> Metrics:
        logits, targets, weights = outputs[:, 0], batch["targets"], batch["loss_weights"]
        metrics: Metrics = {"loss": binary_cross_entropy(logits, targets, weights)}
        if GROUP in batch:
            metrics["auc"] = AUC(logits, targets, weights)
            metrics["auc_error"] = AUCError(logits, targets, weights, batch[GROUP])
        return metrics

    def predictions_of(self, outputs: Float[Array, "batch 1"]) -> Float[Array, " batch"]:
        """Probabilities of the second class."""
        return jax.nn.sigmoid(outputs[:, 0])

    def outputs_of(self, predictions: Float[Array, " batch"]) -> Float[Array, "batch 1"]:
        return jnp.log(predictions / (1 - predictions))[:, None]
