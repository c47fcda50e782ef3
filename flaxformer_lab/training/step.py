"""The one train step and the one evaluation step; every way to run them wraps these two.

A batch is a task's stored examples with two more entries, both [batch]: `weight` (0 for padding) and `row` (the
example's place in the whole batch, from which its random draws follow, however the batch is split).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from flaxformer_lab.functional.losses import WeightedSum
from flaxformer_lab.functional.products import at_precision
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.tasks.task import Batch, Task
from flaxformer_lab.training.state import RngStream, Seed, State, Tree, stream_key

Metrics = dict[str, WeightedSum]


def make_train_step(
    task: Task,
    network: PureNetwork,
    optimizer: optax.GradientTransformation,
    *,
    seed: Seed,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Returns `train_step(state, batch) -> (state, metrics)`.

    The gradient is that of the summed loss over the summed weight of the whole batch: sums over micro-batches, then
    over the devices of `axis_name`, come before the one division. Metrics are reduced in the same way.
    """

    def loss_sum(params: Tree, model_state: Tree, batch: Batch, step: Int[Array, ""]) -> tuple[Array, Metrics]:
        prepared = task.prepare(batch, example_keys(seed, RngStream.PREPARE, step, batch["row"]), training=True)
        keys = example_keys(seed, RngStream.DROPOUT, step, batch["row"])
        metrics = task.loss_and_metrics(network.apply(params, model_state, prepared["inputs"], keys=keys), prepared)
        return metrics["loss"][0], metrics

    # The backward pass and the optimizer are traced outside the network's own functions.
    @at_precision(network.precision)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def gradients(micro_batch: Batch) -> tuple[Tree, Metrics]:
            arguments = (state.params, state.model_state, micro_batch, state.step)
            (_, metrics), gradient = jax.value_and_grad(loss_sum, has_aux=True)(*arguments)
            return gradient, metrics

        sums = gradients(batch) if accumulate == 1 else _summed(gradients, batch, accumulate)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        gradient, metrics = sums
        weight = metrics["loss"][1]
        gradient = jax.tree.map(lambda leaf: leaf / jnp.maximum(weight, 1e-30), gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics = metrics | {"gradient_norm": (optax.tree.norm(gradient), jnp.ones(()))}
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, state.model_state, opt_state), metrics

    return train_step


def make_evaluation_step(
    task: Task, network: PureNetwork, *, seed: Seed, axis_name: str | None = None
) -> Callable[[Tree, Tree, Batch], Metrics]:
    """Returns `evaluation_step(params, model_state, batch) -> metrics`, the sums of one batch, without dropout."""

    @at_precision(network.precision)
    def evaluation_step(params: Tree, model_state: Tree, batch: Batch) -> Metrics:
        prepared = task.prepare(batch, example_keys(seed, RngStream.EVALUATE, 0, batch["row"]), training=False)
        metrics = task.loss_and_metrics(network.apply(params, model_state, prepared["inputs"]), prepared)
        return metrics if axis_name is None else jax.lax.psum(metrics, axis_name)

    return evaluation_step


def example_keys(
    seed: Seed, stream: RngStream, step: Int[Array, ""] | int, rows: Int[Array, " batch"]
) -> Key[Array, " batch"]:
    """One key an example."""
    key = stream_key(seed, stream, step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def _summed(gradients: Callable[[Batch], tuple[Tree, Metrics]], batch: Batch, accumulate: int) -> tuple[Tree, Metrics]:
    """The sum of `gradients` over `accumulate` micro-batches, one at a time."""
    micro_batches = jax.tree.map(lambda leaf: leaf.reshape(accumulate, -1, *leaf.shape[1:]), batch)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(gradients, jax.tree.map(lambda leaf: leaf[0], micro_batches)),
    )

    def add(total: tuple[Tree, Metrics], micro_batch: Batch) -> tuple[tuple[Tree, Metrics], None]:
        return jax.tree.map(jnp.add, total, gradients(micro_batch)), None

    return jax.lax.scan(add, zeros, micro_batches)[0]
