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

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

Axes = tuple[str | None, ...]
Spec = jax.sharding.PartitionSpec
Heads = Float[Array, "batch tokens heads features"]

MESH_AXES = ("data", "fsdp", "sequence", "tensor")
PLACES = {"batch": ("data", "fsdp"), "tokens": "sequence", "width": "fsdp", "heads": "tensor", "hidden": "tensor"}
GATHERED = "gathered"  # the name of what a backward pass gathers anew instead of keeping it


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


def read(parameter: nnx.Param | None) -> Array | None:
    """The array of a parameter, whole where devices keep shares of it; None where a knob removed it."""
    if parameter is None:
        return None
    value, axes = parameter[...], parameter.get_metadata().get("axes")
    if axes is None or kept(axes) == used(axes) or not _on_a_mesh():
        return value
    return checkpoint_name(_gathered(value, axes), GATHERED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: Array, axes: Axes) -> Array:
    return jax.lax.with_sharding_constraint(x, used(axes))


def _forward(x: Array, axes: Axes) -> tuple[Array, None]:
    return _gathered(x, axes), None


def _backward(axes: Axes, _: None, gradient: Array) -> tuple[Array]:
    # Summed over examples first, then shared out: asked for the share alone, the compiler may rather send activations.
    whole = jax.lax.with_sharding_constraint(gradient, used(axes))
    return (jax.lax.with_sharding_constraint(whole, kept(axes)),)


_gathered.defvjp(_forward, _backward)


def _on_a_mesh() -> bool:
    return jax.sharding.get_abstract_mesh().axis_names == MESH_AXES
