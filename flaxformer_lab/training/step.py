"""The one train step and the one evaluation step; every way to run them wraps these two.

A batch is a task's stored examples with two more entries, both [batch]: `example_weight` (0 for padding) and `row` (the
example's place in the whole batch, from which its random draws follow, however the batch is split).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from flaxformer_lab.functional.metrics import Average, Metrics, additive, reduce_over
from flaxformer_lab.functional.products import at_precision
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.modules.lazy_logits import AUTOMATIC
from flaxformer_lab.tasks.task import Batch, Task
from flaxformer_lab.training.state import RngStream, Seed, State, Tree, stream_key

Sums = tuple[Tree, Metrics]  # the gradient and the metrics, summed over examples


def make_train_step(
    task: Task,
    network: PureNetwork,
    optimizer: optax.GradientTransformation,
    *,
    seed: Seed,
    accumulate: int = 1,
    axis_name: str | None = None,
    loss_chunk: int | None = None,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Returns `train_step(state, batch) -> (state, metrics)`.

    The gradient is that of the summed loss over the summed weight of the whole batch: sums over micro-batches, then
    over the devices of `axis_name`, come before the one division. Metrics that add up are reduced in the same way; the
    others are for evaluation alone. loss_chunk: as `training.loss_chunk`.
    """
    options = loss_options(task, loss_chunk)

    def loss_sum(params: Tree, model_state: Tree, batch: Batch, step: Int[Array, ""]) -> tuple[Array, Any]:
        prepared = task.prepare(batch, example_keys(seed, RngStream.PREPARE, step, batch["row"]), training=True)
        outputs, model_state = network.apply(
            params,
            model_state,
            prepared["inputs"],
            valid=prepared.get("valid"),
            keys=example_keys(seed, RngStream.DROPOUT, step, batch["row"]),
            training=True,
            axis_name=axis_name,
            **options,
        )
        with jax.named_scope("loss"):
            metrics = additive(task.loss_and_metrics(outputs, prepared))
        return metrics["loss"].total, (metrics, model_state)

    # The backward pass and the optimizer are traced outside the network's own functions.
    @at_precision(network.precision)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def sums_of(model_state: Tree, micro_batch: Batch) -> tuple[Sums, Tree]:
            arguments = (state.params, model_state, micro_batch, state.step)
            (_, (metrics, model_state)), gradient = jax.value_and_grad(loss_sum, has_aux=True)(*arguments)
            return (gradient, metrics), model_state

        sum_batch = sums_of if accumulate == 1 else functools.partial(_accumulated, sums_of, accumulate)
        sums, model_state = sum_batch(state.model_state, batch)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        gradient, metrics = sums
        weight = metrics["loss"].weight
        with jax.named_scope("optimizer"):
            gradient = jax.tree.map(lambda leaf: leaf / jnp.maximum(weight, 1e-30), gradient)
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            metrics = metrics | {"gradient_norm": Average(optax.tree.norm(gradient), jnp.ones(()))}
            params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, model_state, opt_state), metrics

    return train_step


def loss_options(task: Task, loss_chunk: int | None) -> dict[str, int]:
    """How `PureNetwork.apply` lets a task compute its loss in chunks, where the task can."""
    return {"loss_chunk": loss_chunk or AUTOMATIC} if task.takes_lazy_logits else {}


def make_evaluation_step(
    task: Task, network: PureNetwork, *, seed: Seed, axis_name: str | None = None, loss_chunk: int | None = None
) -> Callable[[Tree, Tree, Batch], Metrics]:
    """Returns `evaluation_step(params, model_state, batch) -> metrics`, the states of one batch, without dropout.

    loss_chunk: as `training.loss_chunk`.
    """
    options = loss_options(task, loss_chunk)

    @at_precision(network.precision)
    def evaluation_step(params: Tree, model_state: Tree, batch: Batch) -> Metrics:
        prepared = task.prepare(batch, example_keys(seed, RngStream.EVALUATE, 0, batch["row"]), training=False)
        outputs, _ = network.apply(params, model_state, prepared["inputs"], valid=prepared.get("valid"), **options)
        return reduce_over(task.loss_and_metrics(outputs, prepared), axis_name)

    return evaluation_step


def example_keys(
    seed: Seed, stream: RngStream, step: Int[Array, ""] | int, rows: Int[Array, " batch"]
) -> Key[Array, " batch"]:
    """One key per example."""
    key = stream_key(seed, stream, step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def _accumulated(
    sums_of: Callable[[Tree, Batch], tuple[Sums, Tree]], accumulate: int, model_state: Tree, batch: Batch
) -> tuple[Sums, Tree]:
    """The sum of `sums_of` over `accumulate` micro-batches, one by one; each starts from the state of the last.

    Every `accumulate`-th row goes into the same micro-batch, so each has the same rows however devices split the batch.
    """
    micro_batches = jax.tree.map(lambda leaf: jnp.swapaxes(leaf.reshape(-1, accumulate, *leaf.shape[1:]), 0, 1), batch)
    first = jax.tree.map(lambda leaf: leaf[0], micro_batches)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(sums_of, model_state, first)[0])

    def add(carry: tuple[Sums, Tree], micro_batch: Batch) -> tuple[tuple[Sums, Tree], None]:
        total, model_state = carry
        sums, model_state = sums_of(model_state, micro_batch)
        return (jax.tree.map(jnp.add, total, sums), model_state), None

    return jax.lax.scan(add, (zeros, model_state), micro_batches)[0]
