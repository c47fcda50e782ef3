"""Peak memory of a program: by its compiler's report, or, where there is none, by its jaxpr."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Var

from flaxformer_lab.models.flops import inner_jaxprs


def program_bytes(compiled: jax.stages.Compiled, function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of arguments, results and temporary arrays on one device.

    function, arguments: what was compiled; the arguments are pytrees of arrays or of their shapes and types on one
    device.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return live_bytes(function, *arguments)
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # minus what reuses an argument's buffer
    return int(memory.argument_size_in_bytes + results + memory.temp_size_in_bytes)


def live_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Peak bytes where operations run one by one, and each result is kept until its last use.

    A compiler that fuses operations usually needs less, so this is an upper estimate.
    """
    return _peak(jax.make_jaxpr(function)(*arguments).jaxpr)


def _peak(jaxpr: Jaxpr) -> int:
    last_use = {
        variable: number
        for number, equation in enumerate(jaxpr.eqns)
        for variable in filter(_is_variable, (*equation.outvars, *equation.invars))
    }
    kept = {*jaxpr.constvars, *jaxpr.invars, *filter(_is_variable, jaxpr.outvars)}
    held = peak = _bytes({*jaxpr.constvars, *jaxpr.invars})
    for number, equation in enumerate(jaxpr.eqns):
        # The arguments of an inner program are held outside it.
        inside = max((_peak(inner) - _bytes(inner.invars) for inner in inner_jaxprs(equation)), default=0)
        peak = max(peak, held + inside)
        held += _bytes(equation.outvars)
        peak = max(peak, held)
        used = {*filter(_is_variable, (*equation.outvars, *equation.invars))} - kept
        held -= _bytes(variable for variable in used if last_use[variable] == number)
    return peak


def _is_variable(atom: Any) -> bool:
    return isinstance(atom, Var)


def _bytes(variables: Iterable[Any]) -> int:
    """Bytes of the values; variables without a shape, like a token, count 0."""
    values = (variable.aval for variable in variables if hasattr(variable.aval, "shape"))
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in values)
