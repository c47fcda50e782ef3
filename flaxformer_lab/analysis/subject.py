"""What is measured: a network with its parameters, a batch, and the functions that the measures take."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxformer_lab.errors import MeasureError
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.tasks import Task
from flaxformer_lab.tasks.task import Batch

Tree = Any  # a pytree of arrays
MEASURED = ("*.attention.weights", "*[0-9].output")  # of each block or layer


@dataclass(frozen=True)
class Subject:
    """A model, trained or fresh, and a prepared batch of its task.

    Raises:
        MeasureError: inputs that are empty, not finite, or of another shape or type than the model takes.
    """

    config: ModelConfig
    task: Task
    network: PureNetwork
    params: Tree
    model_state: Tree
    batch: Batch

    def __post_init__(self) -> None:
        misfit = self.task.input_misfit(self.batch["inputs"])
        if misfit:
            raise MeasureError(f"{misfit}; use inputs of the task it was trained on")
        inputs = jax.tree.leaves(self.batch["inputs"])
        if len(inputs[0]) == 0:
            raise MeasureError("a batch of 0 examples cannot be measured; use at least 1")
        vectors = jax.eval_shape(self.network.embed, self.params, self.model_state, self.batch["inputs"])
        if not isinstance(vectors, jax.ShapeDtypeStruct):
            raise MeasureError("the measures look at one sequence of token vectors, and this model reads several")
        if self.valid is not None and not np.all(np.asarray(self.valid)):
            raise MeasureError(
                "some of these examples are padded, and the measures would take padding for tokens; measure examples "
                "without padding"
            )
        if not all(np.all(np.isfinite(np.asarray(leaf))) for leaf in inputs):
            raise MeasureError(
                "the inputs have values that are not finite, so measures would not be finite either; correct the data"
            )
        if not np.all(np.isfinite(np.asarray(self.vectors))):
            raise MeasureError(
                "the token vectors are not finite: the embedding's parameters are not, or the inputs have symbols "
                "outside its vocabulary; use another checkpoint, or inputs of the task it was trained on"
            )

    @functools.cached_property
    def vectors(self) -> Float[Array, "batch tokens width"]:
        """The token vectors at the input of the body."""
        return jax.jit(self.network.embed)(self.params, self.model_state, self.batch["inputs"]).astype(jnp.float32)

    @functools.cached_property
    def body(self):
        """Token vectors to token vectors, compiled."""
        return jax.jit(lambda vectors: self.network.body(self.params, self.model_state, vectors))

    def at_initialization(self) -> "Subject":
        """The same model with weights that training could have started from."""
        params, model_state = jax.jit(self.network.init)(jax.random.key(0))
        return dataclasses.replace(self, params=params, model_state=model_state)

    @property
    def valid(self) -> Any:
        """Which tokens are not padding; None: all of them."""
        return self.batch.get("valid")

    @functools.cached_property
    def intermediates(self) -> dict[str, Array]:
        """The intermediates that measures look at, by dotted name."""
        run = jax.jit(functools.partial(self.network.intermediates, names=MEASURED))
        return run(self.params, self.model_state, self.batch["inputs"], valid=self.valid)

    def intermediates_named(self, name: str) -> dict[str, Array]:
        """The intermediates called `name`, by block or layer, in order of depth."""
        split = {tuple(path.split(".", 2)): value for path, value in self.intermediates.items()}
        found = {key[:2]: x for key, x in split.items() if key[0] in ("blocks", "layers") and key[2:] == (name,)}
        ordered = sorted(found.items(), key=lambda item: int(item[0][1]))
        return {".".join(key): value for key, value in ordered}

    @functools.cached_property
    def scalar(self):
        """(function, inputs): a scalar function of flat inputs, the outputs summed with fixed random signs.

        The inputs are those of the task where they are vectors, else the embedded tokens.
        """
        inputs = self.batch["inputs"]
        continuous = isinstance(inputs, jax.Array | np.ndarray) and inputs.ndim == 3
        continuous = continuous and jnp.issubdtype(inputs.dtype, jnp.floating)
        inputs = inputs if continuous else self.vectors
        whole = (lambda *arguments: self.network.apply(*arguments)[0]) if continuous else self.network.body
        shape = inputs.shape[1:]

        def outputs(flat: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
            y = whole(self.params, self.model_state, flat.reshape(-1, *shape))
            asked = self._asked(y) if continuous else y
            return asked.reshape(len(flat), -1)

        size = jax.eval_shape(outputs, jax.ShapeDtypeStruct((1, int(np.prod(shape))), jnp.float32)).shape[1]
        signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], size), jnp.float32)
        signs = signs if size > 1 else jnp.ones(1)
        return jax.jit(lambda flat: outputs(flat) @ signs), inputs.reshape(len(inputs), -1)

    def _asked(self, y: Array) -> Array:
        """The outputs of the tokens that the task asks about, in any example."""
        if y.ndim < 3:
            return y
        return y[:, np.flatnonzero(np.any(np.asarray(self.batch["loss_weights"]) > 0, axis=0))]
