"""Where the arrays of a network are on a mesh of devices. Without a mesh nothing here does anything.

One table of rules says which mesh axes divide an axis of an array; an axis that it does not name is on every device:

- data, fsdp: the examples of a batch. Over fsdp, matrices are sharded by the model's width too: gathered where they are
  used, in the type of the computation, and their gradient is reduce-scattered in float32 (Rajbhandari et al. 2020, ZeRO
  stage 3).
- sequence: tokens. Where queries meet keys, keys and values are gathered, and their gradient is reduce-scattered (Dubey
  et al. 2024, Llama 3, section 3.3.2).
- tensor: heads and hidden units, with one sum over devices after each part of a block (Shoeybi et al. 2019); and the
  rows of a table of fields: each device looks up those that it has, and one sum over devices brings them together.

Collectives over fsdp are explicit (`shard_map`): what a compiler finds by itself differs from device to device.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab.functional import linear
from flaxformer_lab.functional.int8 import Int8Matrix
from flaxformer_lab.modules import torus

Axes = tuple[str | None, ...]
Spec = jax.sharding.PartitionSpec
Heads = Float[Array, "batch tokens heads features"]
KVHeads = Float[Array, "batch tokens kv_heads features"]

PRODUCT = "product"  # as `jax.checkpoint_policies` knows the results of `matmul`
MESH_AXES = ("data", "fsdp", "sequence", "tensor")
LOGICAL_AXIS_RULES = {
    "batch": ("data", "fsdp"),
    "tokens": "sequence",
    "width": "fsdp",
    "heads": "tensor",
    "hidden": "tensor",
    "rows": "tensor",
}


def param_spec(axes: Axes) -> Spec:
    """Where a parameter, its gradient and its optimizer state are stored.

    A vector of the model's width is replicated: gathering it would take longer than it saves.
    """
    return Spec() if axes == ("width",) else Spec(*(LOGICAL_AXIS_RULES.get(axis) for axis in axes))


def compute_spec(axes: Axes) -> Spec:
    """Where a parameter is when it is used: gathered over fsdp."""
    return Spec(*(None if place == "fsdp" else place for place in param_spec(axes)))


def with_logical_constraint(x: Array, *axes: str | None) -> Array:
    """The array, sharded by the names of its axes."""
    if not on_a_mesh():
        return x
    return jax.lax.with_sharding_constraint(x, Spec(*(LOGICAL_AXIS_RULES.get(axis) for axis in axes)))


def on_a_mesh() -> bool:
    """Whether the program being traced runs on a mesh with these axes."""
    return jax.sharding.get_abstract_mesh().axis_names == MESH_AXES


def sharded_over(axis: str) -> bool:
    """Whether a mesh axis has more than one device."""
    return on_a_mesh() and jax.sharding.get_abstract_mesh().shape[axis] > 1


# ------------------------------------------------------------------------------------------------------- attention


def context_parallel_attention(
    attend: Callable[..., Heads],
    query: Heads,
    key: KVHeads,
    value: KVHeads,
    *,
    valid: Bool[Array, "batch tokens"] | None,
) -> Heads:
    """`attend(query, key, value, first, valid=valid)` on each device's queries, the first of which is token `first`."""
    batch, tokens, heads = (LOGICAL_AXIS_RULES[axis] for axis in ("batch", "tokens", "heads"))
    shard, whole = Spec(batch, tokens, heads, None), Spec(batch, None)

    def attend_locally(query: Heads, key: KVHeads, value: KVHeads, valid: Bool[Array, "batch keys"] | None) -> Heads:
        key, value = _gather_tokens(key), _gather_tokens(value)
        first = jax.lax.axis_index(tokens) * query.shape[1]
        return attend(query, key, value, first, valid=valid)

    # Every axis of the mesh is named in `shard`, so nothing is replicated that could be checked.
    specs = {"in_specs": (shard, shard, shard, whole), "out_specs": shard, "check_vma": False}
    return jax.shard_map(attend_locally, **specs)(query, key, value, valid)


@jax.custom_vjp
def _gather_tokens(x: Heads) -> Float[Array, "batch _ _ _"]:
    return jax.lax.all_gather(x, LOGICAL_AXIS_RULES["tokens"], axis=1, tiled=True)


def _scatter_gradient(_: None, gradient: Heads) -> tuple[Float[Array, "batch _ _ _"]]:
    # The gradient is summed over the queries of all devices: in float32.
    places = {"scatter_dimension": 1, "tiled": True}
    summed = jax.lax.psum_scatter(gradient.astype(jnp.float32), LOGICAL_AXIS_RULES["tokens"], **places)
    return (summed.astype(gradient.dtype),)


_gather_tokens.defvjp(lambda x: (_gather_tokens(x), None), _scatter_gradient)


def shard_map_attention(
    attend: Callable[..., Heads],
    *heads: Float[Array, "batch _ _ _"],
    valid: Bool[Array, "batch keys"] | None,
    **per_head: Array,
) -> Heads:
    """`attend(*heads, valid=valid, **per_head)` on each device's own examples and heads; they need no others.

    The compiler cannot partition a kernel (cuDNN, Pallas). per_head: arrays [heads]. An axis that the devices do not
    divide equally is replicated.
    """
    if not on_a_mesh():
        return attend(*heads, valid=valid, **per_head)
    batch = _divided("batch", heads[0].shape[0])
    sizes = [x.shape[2] for x in heads] + [len(x) for x in per_head.values()]
    head = LOGICAL_AXIS_RULES["heads"] if all(_divided("heads", size) for size in sizes) else None
    # Tokens are whole here; but the backward pass sums over an axis that no spec names, also over a single device.
    shard = Spec(batch, LOGICAL_AXIS_RULES["tokens"], head, None)
    specs = (shard,) * len(heads), Spec(batch, None), {name: Spec(head) for name in per_head}

    def attend_locally(
        heads: tuple[Float[Array, "batch _ _ _"], ...],
        valid: Bool[Array, "batch keys"] | None,
        per_head: dict[str, Array],
    ) -> Heads:
        return attend(*heads, valid=valid, **per_head)

    sharded = jax.shard_map(attend_locally, in_specs=specs, out_specs=shard, check_vma=False)
    return sharded(heads, valid, per_head)


def _divided(axis: str, size: int) -> str | tuple[str, ...] | None:
    """The mesh axes that divide an axis of this size; None where they do not divide it equally."""
    places = LOGICAL_AXIS_RULES[axis]
    return None if size % _devices_along(places) else places


def _devices_along(places: str | tuple[str, ...]) -> int:
    shape, devices = jax.sharding.get_abstract_mesh().shape, 1
    for place in (places,) if isinstance(places, str) else places:
        devices *= shape[place]
    return devices


# ------------------------------------------------------------------------------------------------------ parameters


def read(parameter: nnx.Param | None) -> Array | None:
    """The array of a parameter, gathered where devices hold shards of it; None where a knob removed it."""
    if parameter is None:
        return None
    value, axes = parameter[...], _axes(parameter)
    if isinstance(value, Int8Matrix):
        return value.astype(value.dtype)
    if axes is None:
        return value
    return jax.lax.with_sharding_constraint(_with_sharded_gradient(value, axes), compute_spec(axes))


def matmul(x: Float[Array, "*batch features_in"], kernel: nnx.Param) -> Float[Array, "*batch features_out"]:
    """x W in x's type."""
    # Named for the policies of rematerialisation, which do not see into a function with a gradient of its own.
    return checkpoint_name(_apply(_MATMUL, x, kernel, x.dtype), PRODUCT)


def take_rows(table: nnx.Param, indices: Int[Array, "*batch"], dtype: DTypeLike) -> Float[Array, "*batch features"]:
    """Rows of a table, in another type."""
    return _apply(_TAKE_ROWS, indices, table, dtype)


def take_sharded_rows(
    table: nnx.Param, indices: Int[Array, "batch *rest"], dtype: DTypeLike
) -> Float[Array, "batch *rest features"]:
    """Rows of a table whose axes are ("rows", None): each device takes those that it has, and the sum has all.

    As `linear.take_rows` has it, NaN for an index outside the table.
    """
    if not sharded_over(LOGICAL_AXIS_RULES["rows"]):
        return linear.take_rows(table[...], indices, dtype)
    place = LOGICAL_AXIS_RULES["rows"]
    rows = Spec(_divided("batch", indices.shape[0]), *(None,) * (indices.ndim - 1))

    def take_own(shard: Array, indices: Array) -> Array:
        local = indices - jax.lax.axis_index(place) * len(shard)
        is_own = (local >= 0) & (local < len(shard))
        taken = linear.take_rows(shard, jnp.clip(local, 0, len(shard) - 1), dtype)
        return jax.lax.psum(jnp.where(is_own[..., None], taken, 0), place)

    specs = {"in_specs": (Spec(place, None), rows), "out_specs": Spec(*rows, None), "check_vma": False}
    is_row = (indices >= 0) & (indices < table.shape[0])
    return jnp.where(is_row[..., None], jax.shard_map(take_own, **specs)(table[...], indices), jnp.nan)


def save_all_but_gathered_parameters(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """The policy of a backward pass that gathers parameters again and saves everything else (`jax.checkpoint`).

    Of all arrays with a sharding constraint, only parameters are not sharded by examples.
    """
    if primitive.name != "sharding_constraint":
        return True
    places = jax.tree.leaves(tuple(parameters["sharding"].spec))
    return any(place in places for place in LOGICAL_AXIS_RULES["batch"])


def _axes(parameter: nnx.Param) -> Axes | None:
    """The names of its axes where devices hold shards of it that must be gathered, else None."""
    axes = parameter.get_metadata().get("axes")
    gathered = axes is not None and sharded_over("fsdp") and param_spec(axes) != compute_spec(axes)
    return axes if gathered else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_sharded_gradient(x: Array, axes: Axes) -> Array:
    del axes
    return x


def _identity_forward(x: Array, axes: Axes) -> tuple[Array, None]:
    del axes
    return x, None


def _identity_backward(axes: Axes, _: None, gradient: Array) -> tuple[Array]:
    # Summed over examples first, then sharded: asked for the shard alone, the compiler may send activations instead.
    whole = jax.lax.with_sharding_constraint(gradient, compute_spec(axes))
    return (jax.lax.with_sharding_constraint(whole, param_spec(axes)),)


_with_sharded_gradient.defvjp(_identity_forward, _identity_backward)


class _Linear(NamedTuple):
    """A map that is linear in its parameter: forward(x, W, dtype), dx of (dy, W), and dW of (x, dy, shape of W).

    axes_of_x: the logical axis of each last axis of x, by those of W. dx is None where x has no gradient.
    """

    forward: Callable[..., Array]
    input_gradient: Callable[..., Array] | None
    parameter_gradient: Callable[..., Array]
    axes_of_x: Callable[[Axes], Axes]


def _rows_gradient(indices: Array, gradient: Array, shape: tuple[int, ...]) -> Float[Array, "rows features"]:
    rows = jnp.zeros(shape, jnp.float32).at[indices]
    return rows.add(gradient.astype(jnp.float32), mode="drop", wrap_negative_indices=False)


_MATMUL = _Linear(
    lambda x, kernel, dtype: linear.matmul(x.astype(dtype), kernel),
    linear.matmul_input_gradient,
    lambda x, gradient, shape: linear.matmul_kernel_gradient(x, gradient),
    lambda axes: axes[:1],
)
_TAKE_ROWS = _Linear(lambda x, table, dtype: linear.take_rows(table, x, dtype), None, _rows_gradient, lambda axes: ())


def _apply(function: _Linear, x: Array, parameter: nnx.Param, dtype: DTypeLike) -> Array:
    axes = _axes(parameter)
    if axes is None:
        return function.forward(x, parameter[...], dtype)
    if _divided("batch", x.shape[0]) is None:
        return function.forward(x, read(parameter), dtype)
    return _apply_gathered(function, x, parameter[...], axes, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _apply_gathered(function: _Linear, x: Array, shard: Array, axes: Axes, dtype: jnp.dtype) -> Array:
    return function.forward(x, _all_gather(shard, axes, dtype), dtype)


def _gathered_forward(function, x, shard, axes, dtype):
    return _apply_gathered(function, x, shard, axes, dtype), (x, shard)


def _gathered_backward(function, axes, dtype, residuals, gradient):
    x, shard = residuals
    dx = None if function.input_gradient is None else function.input_gradient(gradient, _all_gather(shard, axes, dtype))
    inner = function.axes_of_x(axes)
    rows = row_places(x.shape[: x.ndim - len(inner)])
    summed = tuple(place for place in jax.tree.leaves(rows) if place != "fsdp" and sharded_over(place))

    def local_gradient(x: Array, gradient: Array) -> Array:
        whole = _local_shape(axes, shard.shape)
        partial = function.parameter_gradient(x, gradient, whole)
        partial = torus.psum_scatter(partial, "fsdp", axes.index("width"))
        return jax.lax.psum(partial, summed) if summed else partial

    in_specs = (Spec(*rows, *compute_spec(inner)), Spec(*rows, *compute_spec(axes[1:])))
    sharded = jax.shard_map(local_gradient, in_specs=in_specs, out_specs=param_spec(axes), check_vma=False)
    return dx, sharded(x, gradient).astype(shard.dtype)


_apply_gathered.defvjp(_gathered_forward, _gathered_backward)


def _all_gather(shard: Array, axes: Axes, dtype: jnp.dtype) -> Array:
    """A parameter gathered over fsdp; cast first, so that the devices send the type of the computation."""

    def gather(shard: Array) -> Array:
        return torus.all_gather(shard.astype(dtype), "fsdp", axes.index("width"))

    return jax.shard_map(gather, in_specs=param_spec(axes), out_specs=compute_spec(axes), check_vma=False)(shard)


def local_rows(shape: tuple[int, ...]) -> int | None:
    """How many rows of activations [batch, tokens] a device has; None where the devices do not divide the batch."""
    if not on_a_mesh():
        return math.prod(shape)
    if _divided("batch", shape[0]) is None:
        return None
    return math.prod(shape) // math.prod(_devices_along(place or ()) for place in row_places(shape))


def row_places(shape: tuple[int, ...]) -> list[str | tuple[str, ...] | None]:
    """The mesh axes of the first axes of activations: [batch], [batch, tokens], or [batch, rows, columns]."""
    places = [_divided("batch", shape[0]), *(None,) * (len(shape) - 1)]
    if len(shape) == 2:
        places[1] = _divided("tokens", shape[1])
    return places


def _local_shape(axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a gathered parameter on one device: divided by tensor alone."""
    places = (*compute_spec(axes), *(None,) * (len(shape) - len(compute_spec(axes))))
    return tuple(size // _devices_along(place or ()) for size, place in zip(shape, places, strict=True))
