"""Parameters in the 16 bits to which a program casts them: it reads half the bytes and gives the same numbers."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Var

from flaxformer_lab.functional.products import NARROW

Tree = Any  # a pytree of arrays
MOVING = frozenset("reshape broadcast_in_dim gather transpose squeeze slice dynamic_slice copy".split())
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"} | dict.fromkeys(
    ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"), "call_jaxpr"
)


def narrowed(function: Callable[..., Any], params: Tree, *arguments: Tree) -> Tree:
    """The parameters, each cast to the 16-bit type to which `function(params, *arguments)` casts it at every use.

    Others stay as they are: a norm's scale, which is read in float32. arguments: pytrees of arrays or of their shapes.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, arguments))
    jaxpr = jax.make_jaxpr(lambda params, arguments: function(params, *arguments))(*shapes).jaxpr
    reads: dict[int, set[Any]] = collections.defaultdict(set)
    numbers = [*range(len(leaves)), *[None] * (len(jaxpr.invars) - len(leaves))]
    for number in _follow(jaxpr, numbers, reads):
        reads[number].add(None)  # returned as it is
    types = [next(iter(reads[number])) if len(reads[number]) == 1 else None for number in range(len(leaves))]
    is_cast = lambda dtype, leaf: dtype in NARROW and leaf.dtype == jnp.float32  # noqa: E731
    types = [dtype if is_cast(dtype, leaf) else leaf.dtype for dtype, leaf in zip(types, leaves, strict=True)]
    if types == [leaf.dtype for leaf in leaves]:
        return params
    cast = lambda leaves: [leaf.astype(dtype) for leaf, dtype in zip(leaves, types, strict=True)]  # noqa: E731
    return structure.unflatten(jax.jit(cast)(leaves))


def _follow(jaxpr: Jaxpr, numbers: list[int | None], reads: dict[int, set[Any]]) -> list[int | None]:
    """Adds the types to which parameters are cast, None for any other use; returns which the outputs are.

    numbers: the parameter that each input is; None for others.
    """
    holds: dict[Var, int | None] = dict(zip(jaxpr.invars, numbers, strict=True))
    of = lambda x: None if isinstance(x, Literal) else holds.get(x)  # noqa: E731
    for equation in jaxpr.eqns:
        name, found = equation.primitive.name, [of(x) for x in equation.invars]
        if all(number is None for number in found):
            continue
        if name in CALLS:
            inner = equation.params[CALLS[name]].jaxpr
            holds |= zip(equation.outvars, _follow(inner, found, reads), strict=True)
        elif name in MOVING and found[0] is not None:
            holds[equation.outvars[0]] = found[0]
        else:
            dtype = equation.params["new_dtype"] if name == "convert_element_type" else None
            for number in set(found) - {None}:
                reads[number].add(None if dtype is None else jnp.dtype(dtype))
    return [of(x) for x in jaxpr.outvars]
