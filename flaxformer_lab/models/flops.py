"""Floating-point operations of a function, counted in its jaxpr: one number for all devices, compilers and versions.

The rules are those of XLA's analysis of a program before optimisation (`HloCostAnalysis`), which is not available on
GPUs and TPUs:

- a matrix product or a convolution: 2 for each product of two numbers (Kaplan et al. 2020, section 2.1), without those
  of a convolution with its padding;
- a reduction: one for each input number, minus one for each output number;
- arithmetic, comparisons, selections and conversions: one for each output number;
- exponentials, logarithms, roots and other transcendental functions: none; moving data: none.

Unlike XLA, which counts the body of every loop once, each iteration of a loop counts. A loop whose number of iterations
is not known before it runs counts once; of several branches the longest counts.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from flaxformer_lab.functional.platform import counted_forms

# No device, only the platform that a program is traced for (`target_platform`).
CPU = jax.sharding.AbstractMesh((), (), abstract_device=jax.sharding.AbstractDevice("cpu", None, "cpu"))
TRANSCENDENTAL = frozenset("exp log log1p expm1 tanh erf rsqrt sqrt cbrt sin cos tan pow atan2".split())
MOVING = frozenset(
    "broadcast_in_dim reshape transpose squeeze expand_dims slice dynamic_slice dynamic_update_slice concatenate pad "
    "scatter rev iota copy copy_p optimization_barrier stop_gradient name split top_k get swap program_id device_put "
    "all_gather all_to_all ppermute axis_index pcast pvary sharding_constraint reduce_precision random_wrap "
    "random_unwrap".split()
)
NEUTRAL = {"add": 0, "sub": 0, "mul": 1}
# The polynomials that approximate these.
OPERATIONS_PER_ELEMENT = {"logistic": 3, "erfc": 62, "erf_inv": 37}


@contextlib.contextmanager
def as_counted() -> Iterator[None]:
    """Programs take the forms of a CPU, whatever the machine, with loops of known lengths."""
    with jax.sharding.use_abstract_mesh(CPU), counted_forms():
        yield


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of `function(*arguments)`; the arguments are pytrees of arrays, or of their shapes and types."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(live)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name = equation.primitive.name
    if name in RULES:
        return RULES[name](equation)
    inner = list(inner_jaxprs(equation))
    if inner or name in TRANSCENDENTAL or name in MOVING or _changes_nothing(equation):
        return sum(map(_of_jaxpr, inner))
    return OPERATIONS_PER_ELEMENT.get(name, 1) * _size(equation.outvars[0])


def _changes_nothing(equation: Any) -> bool:
    """Whether one operand is a constant that every compiler drops, such as the 1 of x * 1."""
    name = equation.primitive.name
    operands = equation.invars[1:] if name == "sub" else equation.invars
    return any(isinstance(operand, Literal) and operand.val == NEUTRAL.get(name) for operand in operands)


def inner_jaxprs(equation: Any) -> Iterator[Jaxpr]:
    """What an equation calls: the bodies of a `jit`, `custom_vjp`, `checkpoint`, loop or conditional."""
    for leaf in jax.tree.leaves(list(equation.params.values())):
        if isinstance(leaf, ClosedJaxpr | Jaxpr):
            yield getattr(leaf, "jaxpr", leaf)


def _dot_general(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    params = equation.params
    lhs, rhs, _ = params["dimension_numbers"]
    image, kernel = (variable.aval.shape for variable in equation.invars)
    pairs = 1
    for number, padding in enumerate(params["padding"]):
        window = np.arange(kernel[rhs[2 + number]]) * params["rhs_dilation"][number]
        size, dilation = image[lhs[2 + number]], params["lhs_dilation"][number]
        out = (dilation * (size - 1) + 1 + sum(padding) - window[-1] - 1) // params["window_strides"][number] + 1
        places = np.arange(out)[:, None] * params["window_strides"][number] + window - padding[0]
        pairs *= int(np.sum((places >= 0) & (places <= dilation * (size - 1)) & (places % dilation == 0)))
    # An output feature depends on the input features of its group alone, as many as the kernel has.
    return 2 * pairs * image[lhs[0]] * kernel[rhs[0]] * kernel[rhs[1]] // params["batch_group_count"]


def _gather(equation: Any) -> int:
    """One selection for each number, where indices may be out of bounds."""
    fills = equation.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    return _size(equation.outvars[0]) if fills else 0


def _reduction(equation: Any) -> int:
    return _size(equation.invars[0]) - _size(equation.outvars[0])


def _integer_power(equation: Any) -> int:
    """By squaring: a multiplication for each binary digit, and one more for each 1."""
    power = abs(equation.params["y"])
    products = power.bit_length() + power.bit_count() - 2
    return (products + (equation.params["y"] < 0)) * _size(equation.outvars[0])


def _scan(equation: Any) -> int:
    return equation.params["length"] * _of_jaxpr(equation.params["jaxpr"].jaxpr)


def _longest_branch(equation: Any) -> int:
    return max(_of_jaxpr(branch.jaxpr) for branch in equation.params["branches"])


def _shard_map(equation: Any) -> int:
    """The operations of all devices; the body has those of one device."""
    sizes = equation.params["mesh"].shape
    devices = math.prod(sizes[axis] for axis in equation.params["newly_manual_axes"])
    return devices * sum(map(_of_jaxpr, inner_jaxprs(equation)))


def _pallas_call(equation: Any) -> int:
    return math.prod(equation.params["grid_mapping"].grid) * _of_jaxpr(equation.params["jaxpr"])


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _fft(equation: Any) -> int:
    """4 multiplications and additions for each number and binary digit of the length."""
    digits = math.prod(length.bit_length() - 1 for length in equation.params["fft_lengths"])
    return 8 * digits * _size(equation.invars[0])


RULES: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot_general,
    "fft": _fft,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "integer_pow": _integer_power,
    "scan": _scan,
    "cond": _longest_branch,
    "shard_map": _shard_map,
    "pallas_call": _pallas_call,
    "argmax": lambda equation: 9 * _reduction(equation),  # of pairs of a number and its index
    "argmin": lambda equation: 9 * _reduction(equation),
    "scatter-add": lambda equation: _size(equation.invars[2]),
    **dict.fromkeys("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or".split(), _reduction),
}
