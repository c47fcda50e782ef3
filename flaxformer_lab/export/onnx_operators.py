"""What each primitive of JAX is in ONNX: `translate` turns a traced function into the nodes of a graph.

What no input changes is computed while the file is written and stored as a constant: masks, positions, random numbers.
Products are MatMul with the weights second, since quantisers pass over Einsum without a word. Complex numbers, which
runtimes do not have, are two real arrays (`Complex`), and a Fourier transform is a product with cosines and sines.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core
import numpy as np
import onnx
from onnx import helper

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.export.onnx_fusion import fuse
from flaxformer_lab.export.onnx_graph import Graph, Shape, Tensor, Value, arithmetic_type, value_info

Operator = Callable[..., Any]  # (graph, equation, *values) -> a value, or a list of them
OPERATORS: dict[str, Operator] = {}
COMPLEX_OPERATORS: dict[str, Operator] = {}  # of complex inputs


@dataclass(frozen=True)
class Complex:
    """An array of complex numbers: its real and its imaginary parts, which broadcast against each other."""

    real: Value
    imaginary: Value

    @property
    def parts(self) -> tuple[Value, Value]:
        return self.real, self.imaginary


def operator(*names: str, table: dict[str, Operator] = OPERATORS) -> Callable[[Operator], Operator]:
    """Registers how primitives of these names are written."""

    def register(function: Operator) -> Operator:
        table.update(dict.fromkeys(names, function))
        return function

    return register


# ---------------------------------------------------------------------------------------------------- the traversal


def translate(graph: Graph, closed: jax.extend.core.ClosedJaxpr, values: Sequence[Value]) -> list[Value]:
    """The outputs of a traced function for these inputs.

    Raises:
        ConfigError: a primitive that no operator of ONNX, or none of the lab's table, computes.
    """
    jaxpr = closed.jaxpr
    known: dict[Any, Value] = {}
    for variables, given in ((jaxpr.constvars, map(_constant, closed.consts)), (jaxpr.invars, values)):
        known.update(zip(variables, given, strict=True))

    def read(atom: Any) -> Value:
        if _is_literal(atom):
            return _constant(np.asarray(atom.val, atom.aval.dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        outputs = _apply(graph, equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """The outputs of one equation: computed now where nothing in it depends on an input."""
    name, empty = equation.primitive.name, [0 in atom.aval.shape for atom in equation.outvars]
    if all(empty) and all(isinstance(size, int) for atom in equation.outvars for size in atom.aval.shape):
        return [np.zeros(atom.aval.shape, arithmetic_type(atom.aval.dtype)) for atom in equation.outvars]
    keys = any(isinstance(value, jax.Array) for value in values)
    if (name in BY_NUMPY and not keys) or not _is_known(equation, values):
        of_complex = name not in CALLS and any(isinstance(value, Complex) for value in values)
        table = COMPLEX_OPERATORS if of_complex else OPERATORS
        if name not in table:
            raise ConfigError(f"the primitive {name}{' of complex numbers' * of_complex} has no form in ONNX here")
        made = table[name](graph, equation, *values)
        return made if isinstance(made, list) else [made]
    variables = {
        atom: _as_traced(value, atom.aval)
        for value, atom in zip(values, equation.invars, strict=True)
        if not _is_literal(atom)
    }
    names = [("",) * len(each) for each in (variables, equation.outvars)]
    about = jax.extend.core.DebugInfo("jit", "constant", *names)
    alone = jax.extend.core.Jaxpr((), list(variables), equation.outvars, [equation], debug_info=about)
    return [_constant(each) for each in jax.core.eval_jaxpr(alone, (), *variables.values())]


def _is_known(equation: Any, values: list[Value]) -> bool:
    sizes = [size for atom in (*equation.invars, *equation.outvars) for size in atom.aval.shape]
    parts = [part for value in values for part in (value.parts if isinstance(value, Complex) else [value])]
    return (
        not any(isinstance(part, Tensor) for part in parts)
        and all(isinstance(size, int) for size in sizes)
        and equation.primitive.name != "dim_as_value"
    )


def _as_traced(value: Any, aval: Any) -> Any:
    """A constant in the shape and type that JAX traced."""
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return value
    value = value.real + 1j * value.imaginary if isinstance(value, Complex) else value
    return jax.numpy.asarray(np.broadcast_to(value, aval.shape), aval.dtype)


def _constant(value: Any) -> Any:
    """As NumPy, in the type in which the file computes; keys of random numbers stay as they are."""
    if jax.dtypes.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.extended):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "c":
        return Complex(array.real.copy(), array.imag.copy())
    return array if array.dtype == arithmetic_type(array.dtype) else array.astype(arithmetic_type(array.dtype))


def _type_of(equation: Any) -> np.dtype:
    return arithmetic_type(equation.outvars[0].aval.dtype)


def _whole(graph: Graph, equation: Any, number: int, value: Value) -> Value:
    """An input of an equation with each axis in its size."""
    return graph.whole(value, equation.invars[number].aval.shape)


# ------------------------------------------------------------------------------------------------- calls, identities


CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")


@operator(*CALLS)
def _call(graph: Graph, equation: Any, *values: Value) -> list[Value]:
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    jaxpr = next(equation.params[name] for name in names if name in equation.params)
    closed = jaxpr if hasattr(jaxpr, "consts") else jax.extend.core.ClosedJaxpr(jaxpr, ())
    made, formula = translate(graph, closed, values), FORMULAS.get(equation.params.get("name"))
    if formula is None or not isinstance(made[0], Tensor):
        return made
    return [formula(graph, equation, *values), *made[1:]]  # what nothing asks for is dropped in the end


def _standardised(graph: Graph, equation: Any, x: Value) -> Value:
    """`functional.normalization.standardised`: LayerNormalization with a scale of 1.

    Where the mean stays, as in RMSNorm, the nodes that onnxruntime makes one of; the opset has none of its own.
    """
    equations, shape = equation.params["jaxpr"].eqns, equation.invars[0].aval.shape
    (epsilon,) = (
        atom.val for each in equations if each.primitive.name == "add" for atom in each.invars if _is_literal(atom)
    )
    x = _whole(graph, equation, 0, x)
    if sum(each.primitive.name == "reduce_sum" for each in equations) == 2:  # of the mean, and of the squares
        scale = np.ones(shape[-1], np.float32)
        return graph.node("LayerNormalization", [x, scale], shape, np.float32, axis=-1, epsilon=float(epsilon))
    squares = graph.elementwise("Pow", x, np.array(2, np.float32))
    mean = graph.node("ReduceMean", [squares, np.array([-1], np.int64)], (*shape[:-1], 1), np.float32, keepdims=1)
    variance = graph.elementwise("Add", mean, np.array(epsilon, np.float32))
    return graph.elementwise("Div", x, graph.elementwise("Sqrt", variance))


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, jax.extend.core.Literal)


# By the name of a jitted function: its first output in the form that runtimes know.
FORMULAS: dict[str, Callable[..., Value]] = {"standardise_rows": _standardised}


@operator("copy", "copy_p", "name", "optimization_barrier", "stop_gradient", "reduce_precision", "sharding_constraint")
def _identity(graph: Graph, equation: Any, *values: Value) -> list[Value]:
    del graph, equation
    return list(values)


@operator("dim_as_value")
def _dim_as_value(graph: Graph, equation: Any) -> Value:
    return graph.cast(graph.reshape(graph.size(equation.params["dim"]), ()), _type_of(equation))


# -------------------------------------------------------------------------------------------------------- elementwise

SAME_ELEMENTWISE = {
    "add": "Add",
    "add_any": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "erf": "Erf",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
LOGICAL = {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}


@operator(*SAME_ELEMENTWISE)
def _elementwise(graph: Graph, equation: Any, *values: Value) -> Value:
    kind = SAME_ELEMENTWISE[equation.primitive.name]
    if kind in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Max", "Min") and values[0].dtype.kind == "b":
        values = tuple(graph.cast(value, np.int32) for value in values)
        made = graph.elementwise(kind, *values, dtype=np.int32 if kind in ("Max", "Min") else bool)
        return graph.cast(made, bool)
    return graph.elementwise(kind, *values, dtype=_type_of(equation))


@operator(*LOGICAL)
def _logical(graph: Graph, equation: Any, *values: Value) -> Value:
    if _type_of(equation).kind != "b":
        raise ConfigError(f"the primitive {equation.primitive.name} of whole numbers has no form in ONNX here")
    return graph.elementwise(LOGICAL[equation.primitive.name], *values)


@operator("ne")
def _ne(graph: Graph, equation: Any, a: Value, b: Value) -> Value:
    return graph.elementwise("Not", graph.elementwise("Equal", a, b, dtype=bool))


@operator("square")
def _square(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.elementwise("Mul", x, x)


@operator("integer_pow")
def _integer_pow(graph: Graph, equation: Any, x: Value) -> Value:
    exponent = equation.params["y"]
    if exponent == 2:
        return graph.elementwise("Mul", x, x)
    if exponent == -1:
        return graph.elementwise("Reciprocal", x)
    return graph.elementwise("Pow", x, np.array(exponent, x.dtype))


@operator("rsqrt")
def _rsqrt(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.elementwise("Reciprocal", graph.elementwise("Sqrt", x))


@operator("erfc")
def _erfc(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.elementwise("Sub", np.array(1, x.dtype), graph.elementwise("Erf", x))


@operator("log1p")
def _log1p(graph: Graph, equation: Any, x: Value) -> Value:
    """log(u) x / (u - 1) with u = 1 + x, which keeps the digits of a small x (Kahan; Goldberg 1991, theorem 4)."""
    one = np.array(1, x.dtype)
    u = graph.elementwise("Add", x, one)
    ratio = graph.elementwise("Div", x, graph.elementwise("Sub", u, one))
    found = graph.elementwise("Mul", graph.elementwise("Log", u), ratio)
    lost = graph.elementwise("Equal", u, one, dtype=bool)
    found = graph.elementwise("Where", lost, x, found, dtype=x.dtype)
    infinite = graph.elementwise("Equal", u, np.array(np.inf, x.dtype), dtype=bool)
    return graph.elementwise("Where", infinite, u, found, dtype=x.dtype)


@operator("expm1")
def _expm1(graph: Graph, equation: Any, x: Value) -> Value:
    """2 sinh(x / 2) exp(x / 2), which keeps the digits of a small x."""
    half = graph.elementwise("Mul", x, np.array(0.5, x.dtype))
    product = graph.elementwise("Mul", graph.elementwise("Sinh", half), graph.elementwise("Exp", half))
    return graph.elementwise("Mul", product, np.array(2, x.dtype))


@operator("round")
def _round(graph: Graph, equation: Any, x: Value) -> Value:
    if int(equation.params["rounding_method"]) != 1:
        raise ConfigError("rounding of halves away from 0 has no form in ONNX")
    return graph.elementwise("Round", x)


@operator("rem")
def _rem(graph: Graph, equation: Any, a: Value, b: Value) -> Value:
    return graph.elementwise("Mod", a, b, fmod=1)


@operator("lt_to", "le_to")
def _in_total_order(graph: Graph, equation: Any, a: Value, b: Value) -> Value:
    """As `lt` and `le`, but a NaN is the largest number; JAX asks it of sorted values, where -0 is 0."""
    may_be_equal = equation.primitive.name == "le_to"
    found = graph.elementwise("LessOrEqual" if may_be_equal else "Less", a, b, dtype=bool)
    if a.dtype.kind != "f":
        return found
    first, last = (graph.elementwise("IsNaN", value, dtype=bool) for value in (a, b))
    last = last if may_be_equal else graph.elementwise("And", graph.elementwise("Not", first), last)
    return graph.elementwise("Or", found, last)


@operator("is_finite")
def _is_finite(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.elementwise("Less", graph.elementwise("Abs", x), np.array(np.inf, x.dtype), dtype=bool)


@operator("clamp")
def _clamp(graph: Graph, equation: Any, low: Value, x: Value, high: Value) -> Value:
    return graph.elementwise("Min", graph.elementwise("Max", x, low), high)


@operator("select_n")
def _select_n(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value:
    if which.dtype.kind == "b":
        return graph.elementwise("Where", which, cases[1], cases[0], dtype=cases[0].dtype) if cases[1:] else cases[0]
    chosen = cases[-1]
    for number in reversed(range(len(cases) - 1)):
        is_this = graph.elementwise("Equal", which, np.array(number, which.dtype), dtype=bool)
        chosen = graph.elementwise("Where", is_this, cases[number], chosen, dtype=chosen.dtype)
    return chosen


@operator("convert_element_type")
def _convert_element_type(graph: Graph, equation: Any, x: Value) -> Value:
    x, is_complex = graph.cast(x, _type_of(equation)), equation.outvars[0].aval.dtype.kind == "c"
    return Complex(x, np.zeros((1,) * len(x.shape), x.dtype)) if is_complex else x


# ------------------------------------------------------------------------------------------------------------- shapes


@operator("broadcast_in_dim")
def _broadcast_in_dim(graph: Graph, equation: Any, x: Value, *sizes: Value) -> Value:
    """Repeats lazily: an axis that is only repeated has size 1."""
    axes, rank = equation.params["broadcast_dimensions"], len(equation.params["shape"])
    shape: list[Any] = [1] * rank
    for axis, size in zip(axes, _own_shape(x, len(axes)), strict=True):
        shape[axis] = size
    return graph.reshape(x, shape)


def _own_shape(x: Value, rank: int) -> Shape:
    """The shape of a value, at its rank; a constant may have fewer axes."""
    return (1,) * (rank - len(x.shape)) + tuple(x.shape)


@operator("reshape")
def _reshape(graph: Graph, equation: Any, x: Value, *sizes: Value) -> Value:
    return graph.reshape(_whole(graph, equation, 0, x), equation.params["new_sizes"])


@operator("squeeze", "expand_dims")
def _squeeze(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.reshape(_whole(graph, equation, 0, x), equation.outvars[0].aval.shape)


@operator("transpose")
def _transpose(graph: Graph, equation: Any, x: Value) -> Value:
    axes = equation.params["permutation"]
    return graph.transpose(graph.reshape(x, _own_shape(x, len(axes))), axes)


@operator("concatenate")
def _concatenate(graph: Graph, equation: Any, *values: Value) -> Value:
    whole = [_whole(graph, equation, number, value) for number, value in enumerate(values)]
    whole = [each for each in whole if 0 not in each.shape]
    (output,) = equation.outvars
    if len(whole) == 1:
        return whole[0]
    return graph.node("Concat", whole, output.aval.shape, _type_of(equation), axis=equation.params["dimension"])


@operator("stack")
def _stack(graph: Graph, equation: Any, *values: Value) -> Value:
    (output,) = equation.outvars
    axis = equation.params["axis"]
    shape = (*output.aval.shape[:axis], 1, *output.aval.shape[axis + 1 :])
    whole = [graph.reshape(_whole(graph, equation, number, value), shape) for number, value in enumerate(values)]
    return graph.node("Concat", whole, output.aval.shape, _type_of(equation), axis=axis)


@operator("split")
def _split(graph: Graph, equation: Any, x: Value) -> list[Value]:
    sizes, axis = np.array([int(size) for size in equation.params["sizes"]], np.int64), equation.params["axis"]
    outputs = [(output.aval.shape, x.dtype) for output in equation.outvars]
    return graph.node_of_several("Split", [_whole(graph, equation, 0, x), sizes], outputs, axis=axis)


@operator("tile")
def _tile(graph: Graph, equation: Any, x: Value) -> Value:
    repeats = np.array(equation.params["reps"], np.int64)
    return graph.node("Tile", [_whole(graph, equation, 0, x), repeats], equation.outvars[0].aval.shape, x.dtype)


@operator("iota")
def _iota(graph: Graph, equation: Any, *sizes: Value) -> Value:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    positions = graph.cast(graph.positions(shape[axis]), _type_of(equation))
    return graph.reshape(positions, [size if number == axis else 1 for number, size in enumerate(shape)])


@operator("rev")
def _rev(graph: Graph, equation: Any, x: Value) -> Value:
    axes = equation.params["dimensions"]
    bounds = [[-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), list(axes), [-1] * len(axes)]
    return _slice_node(graph, _whole(graph, equation, 0, x), bounds, equation.outvars[0].aval.shape)


def _slice_node(graph: Graph, x: Value, bounds: Sequence[Any], shape: Shape) -> Value:
    """Slice by starts, ends, axes and steps."""
    bounds = [each if isinstance(each, Tensor) else np.asarray(each, np.int64) for each in bounds]
    return graph.node("Slice", [x, *bounds], shape, x.dtype)


@operator("slice")
def _slice(graph: Graph, equation: Any, x: Value) -> Value:
    before, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    starts, strides = equation.params["start_indices"], equation.params["strides"] or (1,) * len(before)
    ends = equation.params["limit_indices"]
    axes = [axis for axis, size in enumerate(before) if (starts[axis], ends[axis], strides[axis]) != (0, size, 1)]
    bounds = [[_bound(each[axis], before[axis]) for axis in axes] for each in (starts, ends)]
    bounds += [axes, [strides[axis] for axis in axes]]
    return _slice_node(graph, _whole(graph, equation, 0, x), bounds, output) if axes else x


def _bound(place: Any, size: Any) -> int:
    """Where a slice begins or ends; counted from the end where the size of the axis is not known."""
    if isinstance(place, int):
        return place
    from_end = place - size
    return int(from_end) if from_end != 0 else np.iinfo(np.int64).max


@operator("pad")
def _pad(graph: Graph, equation: Any, x: Value, padding: Value) -> Value:
    """Negative padding cuts."""
    lows, highs, inner = zip(*equation.params["padding_config"], strict=True)
    x, shape = _whole(graph, equation, 0, x), list(equation.invars[0].aval.shape)
    for axis, between in enumerate(inner):  # zeros between elements: each becomes a row of itself and zeros
        if between:
            wide = [*shape[: axis + 1], 1 + between, *shape[axis + 1 :]]
            x = graph.reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
            amounts = [0] * (2 * len(wide))
            amounts[len(wide) + axis + 1] = between
            x = graph.node("Pad", [x, np.array(amounts, np.int64), graph.reshape(padding, ())], wide, x.dtype)
            merged = [*shape[:axis], shape[axis] * (1 + between), *shape[axis + 1 :]]
            x = graph.reshape(x, merged)
            shape[axis] = shape[axis] * (1 + between)
    highs = [high - between for high, between in zip(highs, inner, strict=True)]
    if not any(lows) and not any(highs):
        return x
    amounts = np.array([*lows, *highs], np.int64)
    return graph.node("Pad", [x, amounts, graph.reshape(padding, ())], equation.outvars[0].aval.shape, x.dtype)


# --------------------------------------------------------------------------------------------------------- reductions

REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_or": "ReduceMax",
    "reduce_and": "ReduceMin",
}


@operator(*REDUCTIONS)
def _reduce(graph: Graph, equation: Any, x: Value) -> Value:
    axes, before = equation.params["axes"], equation.invars[0].aval.shape
    own = _own_shape(x, len(before))
    # Only the axes that are summed over are needed whole.
    x = graph.whole(x, [before[axis] if axis in axes else size for axis, size in enumerate(own)])
    shape = [size for axis, size in enumerate(own) if axis not in axes]
    if not axes:
        return x
    kind, dtype = REDUCTIONS[equation.primitive.name], x.dtype
    x = graph.cast(x, np.int32) if dtype.kind == "b" else x
    axes = np.array(sorted(axes), np.int64)
    return graph.cast(graph.node(kind, [x, axes], shape, x.dtype, keepdims=0), dtype)


@operator("argmax", "argmin")
def _arg(graph: Graph, equation: Any, x: Value) -> Value:
    kind = {"argmax": "ArgMax", "argmin": "ArgMin"}[equation.primitive.name]
    (axis,), shape = equation.params["axes"], equation.outvars[0].aval.shape
    found = graph.node(kind, [_whole(graph, equation, 0, x)], shape, np.int64, axis=axis, keepdims=0)
    return graph.cast(found, _type_of(equation))


@operator("cumsum")
def _cumsum(graph: Graph, equation: Any, x: Value) -> Value:
    axis, reverse = np.array(equation.params["axis"], np.int64), int(equation.params["reverse"])
    x = _whole(graph, equation, 0, x)
    return graph.node("CumSum", [x, axis], x.shape, x.dtype, reverse=reverse)


@operator("top_k")
def _top_k(graph: Graph, equation: Any, x: Value) -> list[Value]:
    axis = equation.params.get("axis", -1)
    return _sorted(graph, _whole(graph, equation, 0, x), equation.params["k"], axis, equation.outvars, largest=1)


def _sorted(graph: Graph, x: Value, number: int, axis: int, outputs: Sequence[Any], largest: int) -> list[Value]:
    """The `number` largest or smallest with their places; of equal ones the first comes first."""
    types = [(outputs[0].aval.shape, x.dtype), (outputs[0].aval.shape, np.int64)]
    count = np.array([number], np.int64)
    values, places = graph.node_of_several("TopK", [x, count], types, axis=axis, largest=largest, sorted=1)
    return [values, graph.cast(places, np.int32)]


@operator("sort")
def _sort(graph: Graph, equation: Any, *values: Value) -> list[Value]:
    """By the first array; the others follow it."""
    if equation.params["num_keys"] != 1:
        raise ConfigError("sorting by several keys has no form in ONNX")
    axis = equation.params["dimension"]
    keys, *others = (_whole(graph, equation, number, value) for number, value in enumerate(values))
    ordered, places = _sorted(graph, keys, equation.invars[0].aval.shape[axis], axis, equation.outvars, largest=0)
    shape = equation.outvars[0].aval.shape
    return [ordered, *(graph.node("GatherElements", [x, places], shape, x.dtype, axis=axis) for x in others)]


# ----------------------------------------------------------------------------------------------------------- products


@operator("dot_general")
def _dot_general(graph: Graph, equation: Any, a: Value, b: Value) -> Value:
    """MatMul, with weights second. The output's axes: those of the batch, then those of a, then those of b."""
    (over, batch), shapes = equation.params["dimension_numbers"], [each.aval.shape for each in equation.invars]
    dtype = _type_of(equation)
    a, b = (graph.cast(graph.whole(x, shape), dtype) for x, shape in zip((a, b), shapes, strict=True))
    free = [
        [axis for axis in range(len(shape)) if axis not in (*inner, *shared)]
        for shape, inner, shared in zip(shapes, over, batch, strict=True)
    ]
    sizes = [[shape[axis] for axis in axes] for shape, axes in zip(shapes, free, strict=True)]
    shared = [shapes[0][axis] for axis in batch[0]]
    if isinstance(a, np.ndarray) and not isinstance(b, np.ndarray):
        made = _product(graph, b, a, (over[1], over[0]), (batch[1], batch[0]), free[::-1], shapes[::-1])
        made = graph.reshape(made, [*shared, *sizes[1], *sizes[0]])
        first, second = len(shared), len(shared) + len(free[1])
        return graph.transpose(made, [*range(first), *range(second, second + len(free[0])), *range(first, second)])
    made = _product(graph, a, b, over, batch, free, shapes)
    return graph.reshape(made, [*shared, *sizes[0], *sizes[1]])


def _product(
    graph: Graph,
    a: Value,
    b: Value,
    over: Sequence[Any],
    batch: Sequence[Any],
    free: Sequence[Sequence[int]],
    shapes: Sequence[Shape],
) -> Value:
    """[batch..., free of a, over] times [batch..., over, free of b]; without a batch, `a` keeps its axes apart."""
    shared = [shapes[0][axis] for axis in batch[0]]
    inner = math.prod(shapes[0][axis] for axis in over[0])
    rows = [shapes[0][axis] for axis in free[0]]
    columns = math.prod(shapes[1][axis] for axis in free[1])
    rows = [math.prod(rows)] if shared or not rows else rows
    a = graph.reshape(graph.transpose(a, [*batch[0], *free[0], *over[0]]), [*shared, *rows, inner])
    b = graph.reshape(graph.transpose(b, [*batch[1], *over[1], *free[1]]), [*shared, inner, columns])
    return graph.node("MatMul", [a, b], [*shared, *rows, columns], a.dtype)


@operator("conv_general_dilated")
def _conv(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    options, output = equation.params, equation.outvars[0].aval.shape
    if options["batch_group_count"] != 1:
        raise ConfigError("a convolution in groups of the batch has no form in ONNX")
    if any(each != 1 for each in options["lhs_dilation"]):
        raise ConfigError("a transposed convolution has no form in ONNX here")
    x, kernel = (_whole(graph, equation, number, value) for number, value in enumerate((x, kernel)))
    of_input, of_kernel, of_output = options["dimension_numbers"]
    x, kernel = graph.transpose(x, of_input), graph.transpose(kernel, of_kernel)
    lows, highs = zip(*options["padding"], strict=True)
    made = graph.node(
        "Conv",
        [x, kernel],
        [output[axis] for axis in of_output],
        _type_of(equation),
        strides=list(options["window_strides"]),
        dilations=list(options["rhs_dilation"]),
        pads=[*lows, *highs],
        group=options["feature_group_count"],
    )
    return graph.transpose(made, np.argsort(of_output).tolist())


@operator("reduce_window_max")
def _max_pool(graph: Graph, equation: Any, x: Value) -> Value:
    options, output = equation.params, equation.outvars[0].aval.shape
    windows, strides = options["window_dimensions"], options["window_strides"]
    moved = [axis for axis, pair in enumerate(zip(windows, strides, strict=True)) if pair != (1, 1)]
    kept = [axis for axis in range(len(windows)) if axis not in moved]
    if len(kept) != 2 or any(each != 1 for each in options["base_dilation"]):
        raise ConfigError(f"a maximum over windows of {windows} has no form in ONNX here")
    order, (lows, highs) = [*kept, *moved], zip(*(options["padding"][axis] for axis in moved), strict=True)
    made = graph.node(
        "MaxPool",
        [graph.transpose(_whole(graph, equation, 0, x), order)],
        [output[axis] for axis in order],
        _type_of(equation),
        kernel_shape=[windows[axis] for axis in moved],
        strides=[strides[axis] for axis in moved],
        dilations=[options["window_dilation"][axis] for axis in moved],
        pads=[*lows, *highs],
    )
    return graph.transpose(made, np.argsort(order).tolist())


# ----------------------------------------------------------------------------------------------------- complex numbers

BY_PARTS = ("add", "sub", "neg", "reduce_sum", "copy", "name", "stop_gradient", "optimization_barrier")
BY_PARTS += ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "concatenate", "slice", "pad")
BY_PARTS += ("gather", "select_n")


@operator(*BY_PARTS, table=COMPLEX_OPERATORS)
def _by_parts(graph: Graph, equation: Any, *values: Value | Complex) -> Complex:
    """What is linear with real coefficients does the same to both parts; indices and conditions are real."""
    function = OPERATORS[equation.primitive.name]
    parts = zip(*(value.parts if isinstance(value, Complex) else (value,) * 2 for value in values), strict=True)
    made = [function(graph, equation, *each) for each in parts]
    return Complex(*(each[0] if isinstance(each, list) else each for each in made))


@operator("complex")
def _complex(graph: Graph, equation: Any, real: Value, imaginary: Value) -> Complex:
    return Complex(real, imaginary)


@operator("real", table=COMPLEX_OPERATORS)
def _real(graph: Graph, equation: Any, x: Complex) -> Value:
    return x.real


@operator("imag", table=COMPLEX_OPERATORS)
def _imag(graph: Graph, equation: Any, x: Complex) -> Value:
    return x.imaginary


@operator("conj", table=COMPLEX_OPERATORS)
def _conj(graph: Graph, equation: Any, x: Complex) -> Complex:
    return Complex(x.real, graph.elementwise("Neg", x.imaginary))


@operator("mul", table=COMPLEX_OPERATORS)
def _complex_mul(graph: Graph, equation: Any, a: Complex, b: Complex) -> Complex:
    times = functools.partial(graph.elementwise, "Mul")
    real = graph.elementwise("Sub", times(a.real, b.real), times(a.imaginary, b.imaginary))
    return Complex(real, graph.elementwise("Add", times(a.real, b.imaginary), times(a.imaginary, b.real)))


@operator("div", table=COMPLEX_OPERATORS)
def _complex_div(graph: Graph, equation: Any, a: Complex, b: Complex) -> Complex:
    """By a real number: a complex one would need care against overflow, and no model divides by one."""
    if isinstance(b.imaginary, Tensor) or np.any(b.imaginary):
        raise ConfigError("division by a complex number has no form in ONNX here")
    return Complex(*(graph.elementwise("Div", part, b.real) for part in a.parts))


@operator("tanh", table=COMPLEX_OPERATORS)
def _complex_tanh(graph: Graph, equation: Any, x: Complex) -> Complex:
    """tanh(a + ib) = (t + i (1 - t^2) sin b cos b) / (cos^2 b + t^2 sin^2 b) with t = tanh a, which never overflows."""
    square = lambda value: graph.elementwise("Mul", value, value)  # noqa: E731
    t, sine, cosine = (
        graph.elementwise(kind, part) for kind, part in (("Tanh", x.real), ("Sin", x.imaginary), ("Cos", x.imaginary))
    )
    rest = graph.elementwise("Sub", np.array(1, t.dtype), square(t))
    imaginary = graph.elementwise("Mul", rest, graph.elementwise("Mul", sine, cosine))
    below = graph.elementwise("Add", square(cosine), square(graph.elementwise("Mul", t, sine)))
    return Complex(graph.elementwise("Div", t, below), graph.elementwise("Div", imaginary, below))


@operator("fft")
def _fft(graph: Graph, equation: Any, x: Value) -> Complex:
    """Of real numbers along the last axis: a product with exp(-2 pi i t k / n)."""
    waves = _waves(_tokens_of_fft(equation, "RFFT")).conj()
    shape, x = equation.outvars[0].aval.shape, _whole(graph, equation, 0, x)
    parts = (waves.real.astype(np.float32), waves.imag.astype(np.float32))
    return Complex(*(graph.node("MatMul", [x, part], shape, x.dtype) for part in parts))


@operator("fft", table=COMPLEX_OPERATORS)
def _inverse_fft(graph: Graph, equation: Any, x: Complex) -> Value:
    """Real numbers from half of their spectrum: each of its modes stands for its conjugate too, where it has one."""
    tokens = _tokens_of_fft(equation, "IRFFT")
    modes = np.arange(tokens // 2 + 1)
    times = np.where((modes == 0) | (2 * modes == tokens), 1, 2) / tokens
    waves = times[:, None] * _waves(tokens).T
    shape = equation.outvars[0].aval.shape
    made = [
        graph.node("MatMul", [_whole(graph, equation, 0, part), wave.astype(np.float32)], shape, np.float32)
        for part, wave in zip(x.parts, (waves.real, waves.imag), strict=True)
    ]
    return graph.elementwise("Sub", *made)


def _tokens_of_fft(equation: Any, wanted: str) -> int:
    """The length of the one axis that a transform of the kind that is wanted goes over."""
    kind, lengths = equation.params["fft_type"].name, equation.params["fft_lengths"]
    if kind != wanted or len(lengths) > 1:
        raise ConfigError(f"a Fourier transform of kind {kind} over {len(lengths)} axes has no form in ONNX here")
    return lengths[0]


def _waves(tokens: int) -> np.ndarray:
    """exp(2 pi i t k / n) [tokens, modes], in complex128."""
    turns = np.arange(tokens)[:, None] * np.arange(tokens // 2 + 1) % tokens  # exact, so that angles stay small
    return np.exp(2j * np.pi * turns / tokens)


# -------------------------------------------------------------------------------------------------------------- places


@operator("dynamic_slice")
def _dynamic_slice(graph: Graph, equation: Any, x: Value, *starts: Value) -> Value:
    sizes, shape = equation.params["slice_sizes"], equation.invars[0].aval.shape
    x = _whole(graph, equation, 0, x)
    return _slice_from(graph, x, starts, shape, sizes)


def _slice_from(graph: Graph, x: Value, starts: Sequence[Value], shape: Shape, sizes: Shape) -> Value:
    axes = [axis for axis, size in enumerate(sizes) if size != shape[axis]]
    if not axes:
        return x
    begin = [_start(graph, starts[axis], shape[axis], sizes[axis]) for axis in axes]
    end = [graph.integer("Add", each, graph.size(sizes[axis])) for each, axis in zip(begin, axes, strict=True)]
    return _slice_node(graph, x, [_joined(graph, begin), _joined(graph, end), axes, [1] * len(axes)], sizes)


def _start(graph: Graph, start: Value, size: Any, length: Any) -> Value:
    """Where a slice begins, moved so that it ends within the axis: int64 of shape [1]."""
    start = graph.reshape(graph.cast(start, np.int64), (1,))
    return _clamped(graph, start, _last_start(graph, size, length))


def _last_start(graph: Graph, size: Any, length: Any) -> Value:
    if isinstance(size, int) and isinstance(length, int):
        return np.array([size - length], np.int64)
    if size == length:
        return np.array([0], np.int64)
    return graph.integer("Add", graph.size(size), np.array([-length], np.int64))


def _clamped(graph: Graph, places: Value, last: Value) -> Value:
    return graph.integer("Max", graph.integer("Min", places, last), np.array([0], np.int64))


def _joined(graph: Graph, values: Sequence[Value]) -> Value:
    if all(isinstance(each, np.ndarray) for each in values):
        return np.concatenate(values)
    return graph.node("Concat", values, (len(values),), np.int64, axis=0) if values[1:] else values[0]


@operator("dynamic_update_slice")
def _dynamic_update_slice(graph: Graph, equation: Any, x: Value, update: Value, *starts: Value) -> Value:
    """Between what is before and behind it along the first axis that it does not fill, axis by axis."""
    shape, sizes = (equation.invars[number].aval.shape for number in (0, 1))
    x, update = (_whole(graph, equation, number, value) for number, value in enumerate((x, update)))
    starts = [_start(graph, each, *both) for each, both in zip(starts, zip(shape, sizes, strict=True), strict=True)]
    return _updated(graph, x, update, starts, list(shape), list(sizes), 0)


def _updated(graph: Graph, x: Value, update: Value, starts: list[Value], shape: list, sizes: list, axis: int) -> Value:
    while axis < len(shape) and shape[axis] == sizes[axis]:
        axis += 1
    if axis == len(shape):
        return update
    end = graph.integer("Add", starts[axis], graph.size(sizes[axis]))
    row = [*shape[:axis], sizes[axis], *shape[axis + 1 :]]
    middle = _slice_node(graph, x, [starts[axis], end, [axis], [1]], row)
    middle = _updated(graph, middle, update, starts, row, sizes, axis + 1)
    # Their sizes depend on an input; nothing but the Concat asks for them.
    before = _slice_node(graph, x, [[0], starts[axis], [axis], [1]], shape)
    behind = _slice_node(graph, x, [end, [np.iinfo(np.int64).max], [axis], [1]], shape)
    return graph.node("Concat", [before, middle, behind], shape, x.dtype, axis=axis)


@operator("gather")
def _gather(graph: Graph, equation: Any, x: Value, indices: Value) -> Value:
    """Rows along one axis by Gather; anything else by the places of the elements in the flat array."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    output, shape = equation.outvars[0].aval.shape, equation.invars[0].aval.shape
    x, indices = (_whole(graph, equation, number, value) for number, value in enumerate((x, indices)))
    axes, window = numbers.start_index_map, numbers.offset_dims
    if (begin := _first_places(numbers, indices, sizes, shape)) is not None:
        return graph.reshape(_slice_from(graph, x, begin, shape, sizes), output)
    rows = axes == numbers.collapsed_slice_dims and len(axes) == 1 and not numbers.operand_batching_dims
    if rows and all(sizes[axis] == shape[axis] for axis in range(len(shape)) if axis != axes[0]):
        starts = _starts(graph, indices, output, window)
        lasts = [_last_start(graph, shape[axes[0]], 1)]
        places = graph.reshape(_clamped(graph, starts[0], lasts[0]), indices.shape[:-1])
        made_shape = (*shape[: axes[0]], *places.shape, *shape[axes[0] + 1 :])
        made = graph.node("Gather", [x, places], made_shape, x.dtype, axis=axes[0])
        # ONNX puts the axes of the indices where the axis was, JAX where `offset_dims` leaves room.
        outer = [number for number in range(len(output)) if number not in window]
        made = graph.transpose(made, np.argsort([*window[: axes[0]], *outer, *window[axes[0] :]]).tolist())
    else:
        batching = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        left_out = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        starts = _starts(graph, indices, output, window)
        lasts = [_last_start(graph, shape[axis], sizes[axis]) for axis in axes]
        inside = [_clamped(graph, *pair) for pair in zip(starts, lasts, strict=True)]
        places = _flat_places(graph, inside, axes, shape, sizes, output, window, left_out, list(batching))
        flat = graph.reshape(x, (math.prod(shape),))
        made = graph.node("Gather", [flat, graph.whole(places, output)], output, x.dtype, axis=0)
    if "FILL" not in str(equation.params["mode"]):
        return made
    within = _all_within(graph, starts, lasts)
    if isinstance(within, np.ndarray) and within.all():
        return made
    fill = equation.params["fill_value"]
    if fill is None:
        fill = np.nan if x.dtype.kind == "f" else x.dtype.kind == "i" and np.iinfo(x.dtype).min
    return graph.elementwise("Where", within, made, np.array(fill, x.dtype), dtype=x.dtype)


def _first_places(numbers: Any, indices: Value, sizes: Shape, shape: Shape) -> list[Value] | None:
    """Where a gather of one window begins along each axis, if that is known and inside: it is a slice."""
    if isinstance(indices, Tensor) or indices.ndim != 1 or numbers.operand_batching_dims:
        return None
    begin = [0] * len(shape)
    for axis, place in zip(numbers.start_index_map, indices.tolist(), strict=True):
        begin[axis] = place
    for place, size, own in zip(begin, sizes, shape, strict=True):
        is_whole = place == 0 and size == own
        if not is_whole and not (isinstance(own, int) and 0 <= place <= own - size):
            return None
    return [np.array(place, np.int64) for place in begin]


SCATTERS = {
    "scatter": "none",
    "scatter-add": "add",
    "scatter-mul": "mul",
    "scatter-min": "min",
    "scatter-max": "max",
}


@operator(*SCATTERS)
def _scatter(graph: Graph, equation: Any, x: Value, indices: Value, updates: Value) -> Value:
    """By places in the flat array; windows that do not fit go to a place behind it, which is cut off."""
    numbers, mode = equation.params["dimension_numbers"], str(equation.params["mode"])
    x, indices, updates = (_whole(graph, equation, number, v) for number, v in enumerate((x, indices, updates)))
    shape, output, axes = tuple(x.shape), tuple(updates.shape), numbers.scatter_dims_to_operand_dims
    window, batching = numbers.update_window_dims, numbers.operand_batching_dims
    left_out = (*numbers.inserted_window_dims, *batching)
    kept = iter(window)
    sizes = [1 if axis in left_out else output[next(kept)] for axis in range(len(shape))]
    pairs = list(zip(batching, numbers.scatter_indices_batching_dims, strict=True))
    starts = _starts(graph, indices, output, window)
    lasts = [_last_start(graph, shape[axis], sizes[axis]) for axis in axes]
    inside = [_clamped(graph, *pair) for pair in zip(starts, lasts, strict=True)]
    places = _flat_places(graph, inside, axes, shape, sizes, output, window, left_out, pairs)
    number = math.prod(shape)
    flat = graph.reshape(x, (number,))
    within = _all_within(graph, starts, lasts) if "FILL" in mode else np.array(True)
    certain = isinstance(within, np.ndarray) and within.all()
    if not certain:
        places = graph.elementwise("Where", within, places, graph.size(number), dtype=np.int64)
        flat = graph.node("Concat", [flat, np.zeros(1, x.dtype)], (number + 1,), x.dtype, axis=0)
    many = (math.prod(output),)
    places, updates = graph.reshape(graph.whole(places, output), many), graph.reshape(updates, many)
    options = {"axis": 0, "reduction": SCATTERS[equation.primitive.name]}
    made = graph.node("ScatterElements", [flat, places, updates], flat.shape, x.dtype, **options)
    made = made if certain else _slice_node(graph, made, [[0], [-1], [0], [1]], (number,))
    return graph.reshape(made, shape)


def _starts(graph: Graph, indices: Value, output: Shape, window: Sequence[int]) -> list[Value]:
    """Each component of the indices, int64, with the axes of the output; those of the windows have size 1."""
    indices = graph.cast(indices, np.int64)
    sizes = iter(indices.shape[:-1])
    shape = [1 if number in window else next(sizes) for number in range(len(output))]

    def component(number: int) -> Value:
        if isinstance(indices, np.ndarray):
            return indices[..., number]
        return graph.node("Gather", [indices, np.array(number, np.int64)], indices.shape[:-1], np.int64, axis=-1)

    return [graph.reshape(component(number), shape) for number in range(indices.shape[-1])]


def _all_within(graph: Graph, starts: Sequence[Value], lasts: Sequence[Value]) -> Value:
    """Whether windows lie within the array as a whole."""
    found = np.array(True)
    for start, last in zip(starts, lasts, strict=True):
        for low, high in ((np.array([0], np.int64), start), (start, last)):
            found = graph.integer("And", found, graph.integer("LessOrEqual", low, high))
    return found


def _flat_places(
    graph: Graph,
    starts: Sequence[Value],
    axes: Sequence[int],
    shape: Shape,
    sizes: Shape,
    output: Shape,
    window: Sequence[int],
    left_out: Sequence[int],
    batching: Sequence[tuple[int, int]],
) -> Value:
    """Where in the flat array each element of the output is.

    starts: of the windows along `axes`. window: axes of the output that run within a window. left_out: axes of the
    array without a window. batching: pairs of an axis of the array and the axis of the indices that it goes along with.
    """
    outer = [number for number in range(len(output)) if number not in window]
    terms = list(zip(starts, axes, strict=True))
    inner = [axis for axis in range(len(shape)) if axis not in left_out]
    along = [(axis, number, sizes[axis]) for axis, number in zip(inner, window, strict=True)]
    along += [(axis, outer[number], shape[axis]) for axis, number in batching]
    for axis, number, size in along:
        ones = [size if each == number else 1 for each in range(len(output))]
        terms.append((graph.reshape(graph.positions(size), ones), axis))
    total: Value = np.zeros((1,) * len(output), np.int64)
    for places, axis in terms:
        stride = graph.size(math.prod(shape[axis + 1 :]))
        total = graph.integer("Add", total, graph.integer("Mul", places, stride))
    return total


# --------------------------------------------------------------------------------------------------------------- loops


def _body(graph: Graph, inputs: Sequence[tuple[Shape, Any]], function: Callable[..., list[Value]]) -> onnx.GraphProto:
    """The body of a loop. function: from the inputs to outputs that have all axes in their sizes."""
    outside, graph.nodes = graph.nodes, []
    try:
        given = [Tensor(graph.fresh("input"), tuple(shape), np.dtype(dtype)) for shape, dtype in inputs]
        graph.shapes |= {each.name: each.shape for each in given}
        made = [graph.node("Identity", [each], each.shape, each.dtype) for each in function(*given)]
        infos = [[value_info(each.name, each.shape, each.dtype) for each in group] for group in (given, made)]
        fuse(graph, [each.name for each in made])
        return helper.make_graph(graph.nodes, graph.fresh("body"), *infos)
    finally:
        graph.nodes = outside


def _inside(graph: Graph, closed: Any, values: Sequence[Value]) -> list[Value]:
    """The outputs of a traced function, whole."""
    made = translate(graph, closed, values)
    return [graph.whole(each, atom.aval.shape) for each, atom in zip(made, closed.jaxpr.outvars, strict=True)]


def _types(atoms: Sequence[Any]) -> list[tuple[Shape, np.dtype]]:
    return [(atom.aval.shape, arithmetic_type(atom.aval.dtype)) for atom in atoms]


@operator("scan")
def _scan(graph: Graph, equation: Any, *values: Value) -> list[Value]:
    options, closed = equation.params, equation.params["jaxpr"]
    fixed, carried = options["num_consts"], options["num_carry"]
    whole = [_whole(graph, equation, number, value) for number, value in enumerate(values)][fixed:]
    inside = _types(closed.jaxpr.invars[fixed:])
    dummy = [] if len(whole) > carried else [np.arange(options["length"])]  # ONNX counts the steps by an input
    body = _body(
        graph,
        [*inside, *(((), np.int64) for _ in dummy)],
        lambda *given: _inside(graph, closed, [*values[:fixed], *given[: len(inside)]]),
    )
    sequences, direction = len(whole) + len(dummy) - carried, int(options["reverse"])
    made = len(equation.outvars) - carried
    outputs = {"scan_output_directions": [direction] * made} if made else {}  # ONNX has no empty attributes
    return graph.node_of_several(
        "Scan",
        [*whole, *dummy],
        _types(equation.outvars),
        body=body,
        num_scan_inputs=sequences,
        scan_input_directions=[direction] * sequences,
        **outputs,
    )


@operator("while")
def _while(graph: Graph, equation: Any, *values: Value) -> list[Value]:
    options = equation.params
    condition, closed = options["cond_jaxpr"], options["body_jaxpr"]
    count, more = options["cond_nconsts"], options["body_nconsts"]
    of_condition, of_body, start = values[:count], values[count : count + more], values[count + more :]
    start = [graph.whole(each, atom.aval.shape) for each, atom in zip(start, equation.outvars, strict=True)]

    def goes_on(carry: Sequence[Value]) -> Value:
        return _inside(graph, condition, [*of_condition, *carry])[0]

    def step(number: Tensor, on: Tensor, *carry: Tensor) -> list[Value]:
        del number, on
        after = _inside(graph, closed, [*of_body, *carry])
        return [goes_on(after), *after]

    types = _types(equation.outvars)
    body = _body(graph, [((), np.int64), ((), bool), *types], step)
    return graph.node_of_several("Loop", ["", goes_on(start), *start], types, body=body)


# Primitives that are computed by NumPy where all is known: cheap, and broadcast lazily.
BY_NUMPY = ("broadcast_in_dim", "reshape", "transpose", "convert_element_type", "squeeze", "copy", "jit", "pjit")
BY_NUMPY += ("custom_vjp_call", "custom_jvp_call", "remat2", "checkpoint", "name")
BY_NUMPY += ("stop_gradient", "optimization_barrier")
