"""Tasks whose examples are drawn on the device from their number: exactly repeatable, and endless on request."""

import abc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.losses import explained_variance, squared_error
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.embedding import FeatureEmbedding, TokenEmbedding
from flaxformer_lab.modules.projection import PROJECTIONS
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.task_config import ProbeConfig, SyntheticConfig
from flaxformer_lab.tasks.examples import Examples, generated_examples
from flaxformer_lab.tasks.task import ACCURACY, R_SQUARED, Batch, Task, loss_and_accuracy

Drawn = tuple[Array, Array, Float[Array, " tokens"]]  # inputs, targets, weights

# Numbers from which evaluation draws, beyond all that training can reach.
FIRST = {"train": 0, "validation": 2**30, "test": 2**30 + 2**29}


class Probe(Task):
    """A task with an outcome known from theory, or from the paper that introduced it.

    A subclass draws one example from one key. Endless examples depend on the run's seed too, so that seeds are
    independent repetitions; a finite training set is the same in every run.
    """

    units = ("examples", 1)
    training_examples: int | None = None
    # Training counts all tokens but the last so many, evaluation those with a weight; None: training these, too.
    unlearned_tokens: int | None = None

    def __init__(self, config: Any, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = {} if metadata is None else metadata

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""]) -> tuple[Array, Array, Float[Array, " tokens"]]:
        """One example: inputs [tokens, ...], targets [tokens, ...], weights [tokens]."""

    def draw_of_split(self, key: Key[Array, ""], is_training: Bool[Array, ""]) -> Drawn:
        """`draw`, for a task whose training examples are other ones than those it is judged by."""
        del is_training
        return self.draw(key)

    def examples(self, split: str) -> Examples:
        if split == "train" and self.training_examples is not None:
            return generated_examples(self.training_examples, first=0, endless=False)
        return generated_examples(self._config.evaluation_examples, first=FIRST[split], endless=split == "train")

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        index = examples["index"]
        keys = jax.vmap(jax.random.fold_in)(keys, index)
        if self.training_examples is not None:
            # By number and not by `training`: an evaluation of the training set must see the training set.
            fixed = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), index)
            keys = jnp.where(index < FIRST["validation"], fixed, keys)
        inputs, targets, weights = jax.vmap(self.draw_of_split)(keys, index < FIRST["validation"])
        if training and self.unlearned_tokens is not None:
            weights = jnp.ones_like(weights).at[:, weights.shape[1] - self.unlearned_tokens :].set(0)
        return {"inputs": inputs, "targets": targets, "loss_weights": weights * examples["example_weight"][:, None]}


class ContinuousProbe(Probe):
    """Vectors in, vectors out; the score is R2 = 1 - (squared error) / (squares of the targets).

    Targets have mean 0 and `variance` by definition; the loss is the squared error in units of that variance.
    """

    primary_metric = R_SQUARED
    tokens: int
    features: int
    outputs: int
    variance: float = 1.0
    _config: ProbeConfig

    def network(self, config: ModelConfig) -> PureNetwork:
        self._require_equal("embedding", self.features, config.width, "features of the input")
        self._require_equal("head", self.outputs, config.width, "outputs")
        task = self._config

        def build(rngs: Rngs) -> Network:
            embedding = FeatureEmbedding(
                task.embedding, self.features, config.width, bias=config.bias, dtype=config.dtype, rngs=rngs
            )
            head = PROJECTIONS[task.head](config.width, self.outputs, axes=("width", None), bias=config.bias, rngs=rngs)
            return Network(config, embedding=embedding, grid=(self.tokens,), outputs=self.outputs, head=head, rngs=rngs)

        return functionalize(build)

    def _require_equal(self, key: str, number: int, width: int, what: str) -> None:
        if getattr(self._config, key) == "identity" and number != width:
            raise ConfigError(
                f"task.{key}=identity leaves the {number} {what} of task.name={self._config.name} as they are, so "
                f"model.width={width} must be {number}; set model.width={number} or task.{key}=dense"
            )

    def loss_and_metrics(self, logits: Float[Array, "batch tokens outputs"], batch: Batch) -> Metrics:
        arguments = (logits, batch["targets"], batch["loss_weights"])
        return {"loss": squared_error(*arguments, variance=self.variance), "r2": explained_variance(*arguments)}

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, self.tokens, self.features), jnp.float32)


class SymbolProbe(Probe):
    """Symbols in, a symbol out for each token that has a weight; loss in nats, and accuracy."""

    primary_metric = ACCURACY
    _config: SyntheticConfig

    def __init__(self, config: Any, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.training_examples = config.training_examples

    def network(self, config: ModelConfig) -> PureNetwork:
        vocabulary, tokens = self._config.vocabulary, self._config.sequence_length

        def build(rngs: Rngs) -> Network:
            embedding = TokenEmbedding(vocabulary, config.width, dtype=config.dtype, rngs=rngs)
            return self.build_network(config, embedding, grid=(tokens,), outputs=vocabulary, rngs=rngs)

        return functionalize(build)

    def build_network(self, config: ModelConfig, embedding: nnx.Module, **sizes: Any) -> Network:
        """The network around an embedding."""
        return Network(config, embedding=embedding, **sizes)

    def loss_and_metrics(self, logits: Float[Array, "batch tokens symbols"], batch: Batch) -> Metrics:
        return loss_and_accuracy(logits, batch)

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, self._config.sequence_length), jnp.int32)
