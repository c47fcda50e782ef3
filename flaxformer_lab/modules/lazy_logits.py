"""Logits that the loss computes itself, chunk by chunk, from what the head reads: on one device or on a mesh."""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxformer_lab.functional.chunked_loss import Gradients, Sums, choose_chunk, chunked_cross_entropy
from flaxformer_lab.functional.metrics import Average
from flaxformer_lab.modules import torus
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.sharding import Axes, Spec, local_rows, on_a_mesh, param_spec, row_places, sharded_over

AUTOMATIC = 0


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "kernel", "bias"], meta_fields=["axes", "chunk"])
@dataclass(frozen=True)
class LazyLogits:
    """x W + b, not computed. axes: of the kernel. chunk: how many rows of each device are computed at once."""

    x: Float[Array, "batch *tokens features"]
    kernel: Float[Array, "features classes"]
    bias: Float[Array, " classes"] | None
    axes: Axes
    chunk: int

    def loss_and_accuracy(
        self, targets: Int[Array, "batch *tokens"], weights: Float[Array, "batch *tokens"]
    ) -> tuple[Average, Average]:
        """`cross_entropy` and `accuracy` of these logits."""
        sums = _sums(self, targets, weights)
        weight = jnp.sum(weights)
        return Average(sums.loss, weight), Average(sums.correct, weight)


def lazy_logits(x: Float[Array, "batch *tokens features"], head: object, chunk: int) -> LazyLogits | None:
    """The logits of a dense head, to be computed in chunks; None where they had better be computed at once.

    chunk: rows of a device at once, or AUTOMATIC.
    """
    rows = local_rows(x.shape[:-1])
    if type(head) is not Dense or rows is None:
        return None
    kernel, bias = head.kernel, head.bias
    chunk = chunk or choose_chunk(rows, kernel.shape[1])
    if chunk is None or chunk >= rows:
        return None
    return LazyLogits(x, kernel[...], None if bias is None else bias[...], kernel.get_metadata()["axes"], chunk)


@jax.custom_vjp
def _sums(logits: LazyLogits, targets: Array, weights: Array) -> Sums:
    return _run(logits, targets, weights, gradients=False)[0]


def _sums_forward(logits: LazyLogits, targets: Array, weights: Array) -> tuple[Sums, LazyLogits]:
    sums, found = _run(logits, targets, weights, gradients=True)
    return sums, dataclasses.replace(logits, **found._asdict())


def _sums_backward(gradient: LazyLogits, towards: Sums) -> tuple[LazyLogits, None, None]:
    # No gradient reaches a count of correct rows.
    return jax.tree.map(lambda leaf: leaf * towards.loss.astype(leaf.dtype), gradient), None, None


_sums.defvjp(_sums_forward, _sums_backward)


def _run(logits: LazyLogits, targets: Array, weights: Array, *, gradients: bool) -> tuple[Sums, Gradients | None]:
    """Sums over all rows of all devices, and the gradients: of the kernel where its shards are."""
    shape = logits.x.shape
    options = {"chunk": logits.chunk, "gradients": gradients}

    def of_device(x: Array, kernel: Array, bias: Array | None, targets: Array, weights: Array):
        flat = x.reshape(-1, x.shape[-1])
        sums, found = chunked_cross_entropy(flat, kernel, bias, targets.reshape(-1), weights.reshape(-1), **options)
        return sums, found if found is None else found._replace(x=found.x.reshape(x.shape))

    if not on_a_mesh():
        return of_device(logits.x, logits.kernel, logits.bias, targets, weights)
    rows = row_places(shape[:-1])
    summed = tuple(jax.tree.leaves(rows))
    gathered = sharded_over("fsdp") and "width" in logits.axes

    def on_mesh(x: Array, kernel: Array, bias: Array | None, targets: Array, weights: Array):
        if gathered:
            kernel = torus.all_gather(kernel.astype(x.dtype), "fsdp", logits.axes.index("width"))
        sums, found = of_device(x, kernel, bias, targets, weights)
        sums = jax.lax.psum(sums, summed)
        if found is None:
            return sums, None
        of_kernel, others = found.kernel, summed
        if gathered:
            of_kernel = torus.psum_scatter(of_kernel, "fsdp", logits.axes.index("width"))
            others = tuple(place for place in summed if place != "fsdp")
        of_kernel = jax.lax.psum(of_kernel, others) if others else of_kernel
        return sums, Gradients(found.x, of_kernel, jax.tree.map(lambda leaf: jax.lax.psum(leaf, summed), found.bias))

    of_x, of_kernel, of_rows, whole = Spec(*rows, None), param_spec(logits.axes), Spec(*rows), Spec()
    in_specs = (of_x, of_kernel, None if logits.bias is None else whole, of_rows, of_rows)
    found_specs = Gradients(of_x, of_kernel, in_specs[2]) if gradients else None
    run = jax.shard_map(on_mesh, in_specs=in_specs, out_specs=(Sums(whole, whole), found_specs), check_vma=False)
    return run(logits.x, logits.kernel, logits.bias, targets, weights)
