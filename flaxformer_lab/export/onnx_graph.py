"""An ONNX graph under construction: values, constants, broadcasting, and sizes that depend on the batch.

A value is a NumPy array, which no input changes, or a `Tensor`, which a node computes. Both broadcast lazily: an axis
that an array is only repeated along has size 1 until a node needs it whole, so a bias stays a vector in the file.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper

from flaxformer_lab.errors import ConfigError

OPSET = 18
IR_VERSION = 9  # that of the opset's time, so that older runtimes read the file
NARROW_MINIMUM = 256  # elements from which on a float32 constant is stored as float16, where that is asked for
NO_CPU_ARITHMETIC = {np.dtype(name): np.dtype(np.int32) for name in ("int8", "int16", "uint16", "uint32")} | {
    np.dtype(name): np.dtype(np.float32)
    for name in ("float16", jnp.bfloat16, "complex64")  # of complex numbers: parts
}

Size = Any  # an int, or an expression of `batch` as jax.export makes it
Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Tensor:
    """What a node computes. shape: with size 1 where it is only repeated along an axis."""

    name: str
    shape: Shape
    dtype: np.dtype


Value = np.ndarray | Tensor


class Graph:
    """Nodes and constants of a model, of which `batch`, if anything, is the size that is not known.

    float16: whether large constants are stored as float16; the arithmetic is float32 in any case.
    """

    def __init__(self, batch: Size = None, *, float16: bool = False):
        self.batch, self.float16 = batch, float16
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[Any, tuple[str, np.ndarray]] = {}
        self.constant_names: dict[int, str] = {}  # of arrays by id: the dotted names of parameters
        self.inputs: list[onnx.ValueInfoProto] = []
        self.shapes: dict[str, Shape] = {}  # of what nodes compute
        self._widening: list[onnx.NodeProto] = []
        self._kept: list[np.ndarray] = []
        self._number, self._batch = 0, None

    # ----------------------------------------------------------------------------------------------------- nodes

    def fresh(self, stem: str) -> str:
        """A name that nothing else in the model has, also in the bodies of loops."""
        self._number += 1
        return f"{stem}_{self._number}"

    def input(self, name: str, shape: Shape, dtype: np.dtype) -> Tensor:
        """An input of the model; the first with a batch says how large it is."""
        self.inputs.append(value_info(name, shape, dtype))
        if self._batch is None and shape and not isinstance(shape[0], int):
            self._batch = Tensor(self.fresh("batch"), (1,), np.dtype(np.int64))
            self.nodes.append(helper.make_node("Shape", [name], [self._batch.name], start=0, end=1))
        self.shapes[name] = tuple(shape)
        return Tensor(name, tuple(shape), np.dtype(dtype))

    def output(self, name: str, value: Value, dtype: Any) -> onnx.ValueInfoProto:
        """An output of the model, in a type that runtimes have."""
        dtype = arithmetic_type(dtype)
        self.nodes.append(helper.make_node("Identity", [self.name(self.cast(value, dtype))], [name]))
        return value_info(name, value.shape, dtype)

    def arithmetic(self, value: Value) -> Value:
        """A value in the type in which the file computes."""
        return self.cast(value, arithmetic_type(value.dtype))

    def name(self, value: Value) -> str:
        """Of a value as the input of a node; a constant is stored once."""
        return value.name if isinstance(value, Tensor) else self._constant(value)

    def node(self, kind: str, inputs: Sequence[Value | str], shape: Shape, dtype: Any, **attributes: Any) -> Tensor:
        """A node with one output. inputs: `""` for one that is left out."""
        names = [each if isinstance(each, str) else self.name(each) for each in inputs]
        output = Tensor(self.fresh(kind.lower()), tuple(shape), np.dtype(dtype))
        self.nodes.append(helper.make_node(kind, names, [output.name], **attributes))
        self.shapes[output.name] = output.shape
        return output

    def node_of_several(
        self, kind: str, inputs: Sequence[Value], outputs: Sequence[tuple[Shape, Any]], **attributes: Any
    ) -> list[Tensor]:
        """A node with an output for each of the shapes and types."""
        made = [Tensor(self.fresh(kind.lower()), tuple(shape), np.dtype(dtype)) for shape, dtype in outputs]
        names = [each if isinstance(each, str) else self.name(each) for each in inputs]
        self.nodes.append(helper.make_node(kind, names, [each.name for each in made], **attributes))
        self.shapes |= {each.name: each.shape for each in made}
        return made

    def _constant(self, array: np.ndarray) -> str:
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self.constants:
            name = self.constant_names.get(id(array))
            taken = {name for name, _ in self.constants.values()}  # a parameter may be there in two shapes
            name = self.fresh("constant") if name is None or name in taken else name
            self.constants[key] = (name, array)
            if self._is_narrow(array):
                node = helper.make_node("Cast", [f"{name}.float16"], [name], to=onnx.TensorProto.FLOAT)
                self._widening.append(node)
        return self.constants[key][0]

    def _named_as(self, array: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """The second array, which has the elements of the first one in another shape or order."""
        if id(array) in self.constant_names:
            self.constant_names[id(moved)] = self.constant_names[id(array)]
            self._kept.append(moved)  # so that no other array gets its id
        return moved

    def _is_narrow(self, array: np.ndarray) -> bool:
        return self.float16 and array.dtype == np.float32 and array.size >= NARROW_MINIMUM

    # ------------------------------------------------------------------------------------ elementwise, and shapes

    def elementwise(self, kind: str, *values: Value, dtype: Any = None, **attributes: Any) -> Tensor:
        """A node that works element by element and broadcasts. dtype: of the output; by default the first value's."""
        shape = broadcast_shapes(*(value.shape for value in values))
        # A bias as a vector, which is how runtimes know it.
        rank = max((len(value.shape) for value in values if isinstance(value, Tensor)), default=0)
        inputs = [self._without_ones(value) if len(value.shape) <= rank else value for value in values]
        return self.node(kind, inputs, shape, values[0].dtype if dtype is None else dtype, **attributes)

    def _without_ones(self, value: Value) -> Value:
        """A constant without axes of size 1 in front, which broadcasting adds again."""
        if isinstance(value, Tensor):
            return value
        ones = next((place for place, size in enumerate(value.shape) if size != 1), max(0, value.ndim - 1))
        return self.reshape(value, value.shape[ones:])

    def cast(self, value: Value, dtype: Any) -> Value:
        """In another type."""
        dtype = np.dtype(dtype)
        if value.dtype == dtype:
            return value
        if isinstance(value, np.ndarray):
            return value.astype(dtype)
        return self.node("Cast", [value], value.shape, dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def whole(self, value: Value, shape: Shape) -> Value:
        """With each axis in its size."""
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if isinstance(value, np.ndarray) and all(isinstance(size, int) for size in shape):
            return np.broadcast_to(value, shape)
        value = self.reshape(value, (1,) * (len(shape) - len(value.shape)) + value.shape)
        target = [1 if own == size else size for own, size in zip(value.shape, shape, strict=True)]
        return self.node("Expand", [value, self.sizes(target)], shape, value.dtype)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """In another shape of as many elements."""
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if isinstance(value, np.ndarray):
            return self._named_as(value, value.reshape(shape))
        unknown = [size for size in shape if not isinstance(size, int)]
        if len(unknown) > 1:
            raise ConfigError(f"two axes of one array depend on the size of the batch: {shape}")
        target = np.array([size if isinstance(size, int) else -1 for size in shape], np.int64)
        return self.node("Reshape", [value, target], shape, value.dtype)

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """With its axes in this order."""
        if list(axes) == list(range(len(value.shape))):
            return value
        if isinstance(value, np.ndarray):
            return self._named_as(value, np.ascontiguousarray(value.transpose(axes)))
        return self.node("Transpose", [value], [value.shape[axis] for axis in axes], value.dtype, perm=list(axes))

    # ---------------------------------------------------------------------------------------------- whole numbers

    def size(self, size: Size) -> Value:
        """As int64 of shape [1].

        Raises:
            ConfigError: it is no whole number of times the batch.
        """
        if isinstance(size, int | np.integer):
            return np.array([size], np.int64)
        times = size // self.batch
        if not isinstance(times, int) or times * self.batch != size or self._batch is None:
            raise ConfigError(f"the size {size} of an axis is no whole number of times the batch")
        return self._batch if times == 1 else self.integer("Mul", self._batch, np.array([times], np.int64))

    def sizes(self, shape: Shape) -> Value:
        """A shape as int64 of shape [axes]."""
        if all(isinstance(size, int) for size in shape):
            return np.array(shape, np.int64)
        return self.node("Concat", [self.size(size) for size in shape], (len(shape),), np.int64, axis=0)

    def integer(self, kind: str, a: Value, b: Value) -> Value:
        """Add, Mul, Min, Max, LessOrEqual or And of whole numbers or truths, at once where both are known."""
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return NUMPY[kind](a, b)
        return self.elementwise(kind, a, b, dtype=bool if kind in ("LessOrEqual", "And") else a.dtype)

    def positions(self, size: Size) -> Value:
        """0, 1, ... below a size, as int64."""
        if isinstance(size, int):
            return np.arange(size, dtype=np.int64)
        end = self.reshape(self.size(size), ())
        return self.node("Range", [np.array(0, np.int64), end, np.array(1, np.int64)], (size,), np.int64)

    # ------------------------------------------------------------------------------------------------- the model

    def model(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The whole model. outputs: of nodes that are already there."""
        used = {*names_in(self.nodes)}
        initializers = [
            numpy_helper.from_array(array.astype(np.float16), f"{name}.float16")
            if self._is_narrow(array)
            else numpy_helper.from_array(array, name)
            for name, array in self.constants.values()
            if name in used
        ]
        widening = [node for node in self._widening if node.output[0] in used]
        graph = helper.make_graph(widening + self.nodes, "model", self.inputs, outputs, initializers)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="flaxformer_lab")


def names_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """The inputs of nodes, also of those in the bodies of loops."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from names_in(attribute.g.node)
                yield from (each.name for each in attribute.g.output)


NUMPY = {
    "Add": np.add,
    "Mul": np.multiply,
    "Min": np.minimum,
    "Max": np.maximum,
    "LessOrEqual": np.less_equal,
    "And": np.logical_and,
}


def value_info(name: str, shape: Shape, dtype: Any) -> onnx.ValueInfoProto:
    """The type of an input or output; a size that depends on the batch has its formula as its name."""
    sizes = [size if isinstance(size, int) else str(size) for size in shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), sizes)


def arithmetic_type(dtype: Any) -> np.dtype:
    """The type in which a file computes: runtimes for CPUs have no sums of bfloat16, or of small whole numbers."""
    return NO_CPU_ARITHMETIC.get(np.dtype(dtype), np.dtype(dtype))


def broadcast_shapes(*shapes: Shape) -> Shape:
    """That of arrays which broadcast against each other."""
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((size for size in column if size != 1), 1) for column in columns)
