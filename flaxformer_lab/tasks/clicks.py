"""Clicks and the like: a probability for each record, from its fields; judged by the area under the ROC curve."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxformer_lab.data.field_builders import GROUP
from flaxformer_lab.data.source import Source
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import metrics
from flaxformer_lab.functional.losses import binary_cross_entropy
from flaxformer_lab.functional.metrics import AUCError, Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.field_network import field_network
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import ClickConfig
from flaxformer_lab.tasks.examples import Arrays
from flaxformer_lab.tasks.tables import Tabular, TabularClassification
from flaxformer_lab.tasks.task import AUC, Batch, Keys, PrimaryMetric


@register("task", "click", config=ClickConfig)
class Click(TabularClassification):
    """The second class of a table is predicted; the fields are its categories and its numbers.

    `auc_error` is the standard error of the AUC: whole groups of records, or else records, are drawn with replacement.
    """

    primary_metric = AUC
    outputs = 1
    _config: ClickConfig

    def __init__(self, config: ClickConfig, metadata: Mapping[str, Any] | None = None):
        Tabular.__init__(self, config, metadata)

    @classmethod
    def primary_metric_of(cls, config: ClickConfig) -> PrimaryMetric:
        del config
        return AUC

    def _read_target(self, source: Source, arrays: Arrays) -> dict[str, Any]:
        found = super()._read_target(source, arrays)
        if found["num_classes"] != 2:
            raise ConfigError(
                f"task.dataset={self._config.dataset} has {found['num_classes']} classes and task.name=click takes "
                "two; set task.name=tabular_classification"
            )
        return found

    def network(self, config: ModelConfig) -> PureNetwork:
        return field_network(self._config, config, self._num_columns, self.levels)

    def prepare(self, examples: Batch, keys: Keys, *, training: bool) -> Batch:
        batch = super().prepare(examples, keys, training=training)
        if training:
            return batch
        rows = jnp.arange(len(batch["targets"]))
        return batch | {GROUP: examples.get(GROUP, examples.get("row", rows))}

    def loss_and_metrics(self, outputs: Float[Array, "batch _"], batch: Batch) -> Metrics:
        """Of one logit for each record, or of both classes' logits, as a control may give them."""
        logits = outputs[:, -1] - (outputs[:, 0] if outputs.shape[1] == 2 else 0)
        state = logits, batch["targets"], batch["loss_weights"]
        found: Metrics = {"loss": binary_cross_entropy(*state), "auc": metrics.AUC(*state)}
        return found | ({"auc_error": AUCError(*state, batch[GROUP])} if GROUP in batch else {})

    def scores_of(self, predictions: np.ndarray) -> dict[str, list]:
        no, yes = self.class_names()
        target = self.metadata.get("target_column", self._label)
        best = [yes if share > 0.5 else no for share in predictions]
        return {f"predicted {target}": best, f"probability of {yes}": np.asarray(predictions, float).tolist()}

    def predictions_of(self, outputs: Float[Array, "batch 1"]) -> Float[Array, " batch"]:
        """Probabilities of the second class."""
        return jax.nn.sigmoid(outputs[:, 0])

    def outputs_of(self, predictions: Float[Array, " batch"]) -> Float[Array, "batch 1"]:
        return jnp.log(predictions / (1 - predictions))[:, None]
