"""The network around a body whose tokens are the fields of a record: their vectors, and one number for a record."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.fields import FieldEmbedding, FieldHead
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.task_config import FieldKnobs


class FieldNetwork(Network):
    """A network whose head is given the fields' vectors beside what the body makes of them."""

    def __call__(
        self, inputs: Any, *, valid: Any = None, keys: Any = None, intermediates: Intermediates = DISABLED
    ) -> Float[Array, "batch 1"]:
        vectors = self.embedding(inputs)
        x = self.body(vectors, valid=valid, keys=keys, intermediates=intermediates)
        return self.head(x, vectors, inputs).astype(jnp.float32)


def field_network(knobs: FieldKnobs, config: ModelConfig, columns: int, levels: Sequence[int]) -> PureNetwork:
    """columns: how many numbers a record has. levels: how many each of its categories has."""
    options = {"buckets": knobs.buckets if knobs.fields == "hashed" else None, "crosses": knobs.crosses}

    def embed(width: int, rngs: Rngs) -> FieldEmbedding:
        scale = knobs.embedding_scale
        return FieldEmbedding(columns, levels, width, scale=scale, dtype=config.dtype, rngs=rngs, **options)

    def build(rngs: Rngs) -> FieldNetwork:
        embedding = embed(config.width, rngs)
        own = embed(1, rngs) if knobs.own_weights else None
        fields = embedding.fields
        parts = {"readout": knobs.readout, "own": own, "deep": knobs.deep, "bias": config.bias}
        head = FieldHead(fields, config.width, **parts, rngs=rngs)
        return FieldNetwork(config, embedding=embedding, grid=(fields,), outputs=1, head=head, rngs=rngs)

    return functionalize(build)
