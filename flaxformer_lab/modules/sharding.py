"""Where the arrays of a network lie on a mesh of devices. Without a mesh nothing here does anything.

The one table says which mesh axes share out an axis of an array; what it does not name, every device holds whole:

- data, fsdp: the examples of a batch. Over fsdp, matrices are kept in shares of the model's width too, and gathered
  where they are used; so is their gradient scattered (Rajbhandari et al. 2020, ZeRO stage 3).
- sequence: tokens. Where queries meet keys, keys and values are gathered, and their gradient is scattered (Dubey et al.
  2024, Llama 3, section 3.3.2).
- tensor: heads and hidden units, with one sum over devices after each part of a block (Shoeybi et al. 2019).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

Axes = tuple[str | None, ...]
Spec = jax.sharding.PartitionSpec
Heads = Float[Array, "batch tokens heads features"]

MESH_AXES = ("data", "fsdp", "sequence", "tensor")
PLACES = {"batch": ("data", "fsdp"), "tokens": "sequence", "width": "fsdp", "heads": "tensor", "hidden": "tensor"}


def kept(axes: Axes) -> Spec:
    """Where a parameter, its gradient and what the optimizer knows of it are kept.

    A vector of the model's width stays whole: gathering it would take longer than it saves.
    """
    return Spec() if axes == ("width",) else Spec(*(PLACES.get(axis) for axis in axes))


def used(axes: Axes) -> Spec:
    """Where a parameter is when it is used: gathered over fsdp."""
    return Spec(*(None if place == "fsdp" else place for place in kept(axes)))


def laid(x: Array, *axes: str | None) -> Array:
    """The array, laid out by the names of its axes."""
    return jax.lax.with_sharding_constraint(x, Spec(*(PLACES.get(axis) for axis in axes))) if _on_a_mesh() else x


def tokens_in_shares() -> bool:
    """Whether each device holds a share of the tokens."""
    return _on_a_mesh() and jax.sharding.get_abstract_mesh().shape["sequence"] > 1


def by_shares(
    attend: Callable[..., Heads], query: Heads, key: Heads, value: Heads, *, valid: Bool[Array, "batch tokens"] | None
) -> Heads:
    """`attend(query, key, value, first, valid=valid)` on each device's queries, the first of which is token `first`."""
    share, whole = Spec(PLACES["batch"], PLACES["tokens"], PLACES["heads"], None), Spec(PLACES["batch"], None)

    def attend_share(query: Heads, key: Heads, value: Heads, valid: Bool[Array, "batch tokens"] | None) -> Heads:
        key, value = (jax.lax.all_gather(x, PLACES["tokens"], axis=1, tiled=True) for x in (key, value))
        first = jax.lax.axis_index(PLACES["tokens"]) * query.shape[1]
        return attend(query, key, value, first, valid=valid)

    # Every axis of the mesh is named in `share`, so there is nothing for the check of replicated values to find.
    places = {"in_specs": (share, share, share, whole), "out_specs": share, "check_vma": False}
    return jax.shard_map(attend_share, **places)(query, key, value, valid)


def parameters_in_shares() -> bool:
    """Whether each device holds a share of the parameters, which it gathers where it uses them."""
    return _on_a_mesh() and jax.sharding.get_abstract_mesh().shape["fsdp"] > 1


def read(parameter: nnx.Param | None, dtype: DTypeLike | None = None) -> Array | None:
    """The array of a parameter, in another type where one is given, whole where devices keep shares of it.

    None where a knob removed it.
    """
    if parameter is None:
        return None
    value, axes = parameter[...], parameter.get_metadata().get("axes")
    dtype = value.dtype if dtype is None else dtype
    if axes is None or kept(axes) == used(axes) or not _on_a_mesh():
        return value.astype(dtype)
    return jax.lax.with_sharding_constraint(_with_gradient_in_shares(value, axes).astype(dtype), used(axes))


def outlives_forward_pass(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """The policy of a backward pass that gathers parameters anew and keeps everything else (`jax.checkpoint`).

    Of all that is laid out, only parameters do not lie by examples.
    """
    if primitive.name != "sharding_constraint":
        return True
    places = jax.tree.leaves(tuple(parameters["sharding"].spec))
    return any(place in places for place in PLACES["batch"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_gradient_in_shares(x: Array, axes: Axes) -> Array:
    del axes
    return x


def _forward(x: Array, axes: Axes) -> tuple[Array, None]:
    del axes
    return x, None


def _backward(axes: Axes, _: None, gradient: Array) -> tuple[Array]:
    # Summed over examples first, then shared out: asked for the share alone, the compiler may rather send activations.
    whole = jax.lax.with_sharding_constraint(gradient, used(axes))
    return (jax.lax.with_sharding_constraint(whole, kept(axes)),)


_with_gradient_in_shares.defvjp(_forward, _backward)


def _on_a_mesh() -> bool:
    return jax.sharding.get_abstract_mesh().axis_names == MESH_AXES
