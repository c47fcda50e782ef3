"""P8 over the fields of a record: a known function with a known share of crosses."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flaxformer_lab.functional.losses import explained_variance, squared_error
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models import theory
from flaxformer_lab.models.field_network import field_network
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import PlantedCrossesConfig
from flaxformer_lab.tasks.probe import Drawn, Probe
from flaxformer_lab.tasks.task import R_SQUARED, Batch, Bound


@register("task", "planted_crosses", config=PlantedCrossesConfig)
class PlantedCrosses(Probe):
    """y = sum_i a_i(x_i) + sum_{i<j} b_ij(x_i, x_j) over fields, with variance 1.

    Each a_i, and each b_ij in either level, has the mean 0: so the pairs' share of the variance is exactly
    `interaction_share`, and a function that adds up fields cannot exceed R2 = 1 - share.
    """

    primary_metric = R_SQUARED
    _config: PlantedCrossesConfig

    def __init__(self, config: PlantedCrossesConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        number, levels, share = config.number, config.levels, config.interaction_share
        generator = np.random.default_rng(config.coefficient_seed)
        own = generator.normal(size=(number, levels))
        pairs = generator.normal(size=(number, number, levels, levels))
        own -= own.mean(axis=1, keepdims=True)
        pairs -= pairs.mean(axis=2, keepdims=True)
        pairs -= pairs.mean(axis=3, keepdims=True)
        pairs *= np.triu(np.ones((number, number)), k=1)[:, :, None, None]
        self.own = own * np.sqrt((1 - share) / np.sum(np.mean(own**2, axis=1)))
        self.pairs = pairs * np.sqrt(share / np.sum(np.mean(pairs**2, axis=(2, 3))))

    def draw(self, key: Key[Array, ""]) -> Drawn:
        levels = jax.random.randint(key, (self._config.number,), 0, self._config.levels)
        return levels, self.truth(levels), jnp.ones((1,))

    def truth(self, levels: Int[Array, " fields"]) -> Float[Array, "1 1"]:
        """The planted function."""
        fields = jnp.arange(self._config.number)
        own = jnp.asarray(self.own, jnp.float32)[fields, levels]
        pairs = jnp.asarray(self.pairs, jnp.float32)
        pairs = pairs[fields[:, None], fields[None], levels[:, None], levels[None]]
        return (jnp.sum(own) + jnp.sum(pairs))[None, None]

    def network(self, config: ModelConfig) -> PureNetwork:
        return field_network(self._config, config, 0, (self._config.levels,) * self._config.number)

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        batch = super().prepare(examples, keys, training=training)
        return batch | {"inputs": {"categories": batch["inputs"]}}

    def loss_and_metrics(self, outputs: Float[Array, "batch 1"], batch: Batch) -> Metrics:
        arguments = (outputs[:, None], batch["targets"], batch["loss_weights"])
        return {"loss": squared_error(*arguments, variance=1.0), "r2": explained_variance(*arguments)}

    def bound(self, config: ModelConfig) -> Bound | None:
        adds_up = theory.is_affine(config, self._config.number) and not self._config.deep and not self._config.crosses
        if not adds_up:
            return None
        return Bound("r2", 1 - self._config.interaction_share, "what adds up the fields sees no pair of them")

    def input_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"categories": jax.ShapeDtypeStruct((batch_size, self._config.number), jnp.int32)}
