"""Groups of nodes that an operator of ONNX stands for, and nodes that nothing asks for.

What JAX traces is finer than what runtimes have kernels for. A runtime for one example on a small device spends as long
on calling a small node as on its arithmetic, so a softmax or a norm in eight nodes takes several times as long as in
one. onnxruntime looks for the groups that PyTorch writes, which ours are not.
"""

import collections
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from flaxformer_lab.export.onnx_graph import Graph, names_in

Node = onnx.NodeProto
SQRT_HALF = 0.5**0.5


def fuse(graph: Graph, outputs: Sequence[str]) -> None:
    """Rewrites the nodes of a graph in place; the outputs, and the numbers up to rounding, stay as they are."""
    graph.nodes = _needed(graph.nodes, outputs)
    for rewrite in REWRITES:
        changed = True
        while changed:
            known = _Known(graph, outputs)
            rewritten = [rewrite(known, node) for node in graph.nodes]
            changed = any(rewritten)
            pairs = zip(graph.nodes, rewritten, strict=True)
            graph.nodes = _needed([made for node, new in pairs for made in new or [node]], outputs)


def _needed(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & {*node.output}:
            kept.append(node)
            wanted |= {*names_in([node])}
    return kept[::-1]


class _Known:
    """The node of each value, how often values are asked for, and the constants."""

    def __init__(self, graph: Graph, outputs: Sequence[str]):
        self.graph = graph
        self.uses = collections.Counter([*names_in(graph.nodes), *outputs])
        self._nodes = {name: node for node in graph.nodes for name in node.output}
        self._arrays = dict(graph.constants.values())

    def node(self, name: str, kind: str) -> Node | None:
        """The node of this kind that computes a value."""
        node = self._nodes.get(name)
        return node if node is not None and node.op_type == kind else None

    def array(self, name: str) -> np.ndarray | None:
        """A constant."""
        return self._arrays.get(name)

    def is_number(self, name: str, value: float) -> bool:
        """Whether a value is a constant with one element, equal up to rounding to float32."""
        array = self.array(name)
        return array is not None and array.size == 1 and bool(np.isclose(array.item(), value, rtol=1e-6, atol=0))

    def other(self, node: Node, value: float) -> str | None:
        """The other input of a node that has this number as one of two."""
        for number, other in (node.input, node.input[::-1]):
            if self.is_number(number, value):
                return other
        return None

    def over_last_axis(self, name: str, kind: str) -> str | None:
        """What a value is the ReduceSum or ReduceMax of, over its last axis, which has size 1 afterwards."""
        reshaped = self.node(name, "Reshape")
        if reshaped is None:
            return None
        above = self.node(reshaped.input[0], "Max")  # JAX takes the maximum of -inf too
        source = None if above is None else self.other(above, -np.inf)
        node = self.node(source or reshaped.input[0], kind)
        if node is None:
            return None
        shape, axes = self.graph.shapes[node.input[0]], self.array(node.input[1])
        is_last = axes is not None and axes.tolist() == [len(shape) - 1]
        return node.input[0] if is_last and self.graph.shapes[name] == (*shape[:-1], 1) else None

    def scores_of(self, exponentials: str) -> str | None:
        """x where a value is exp(x - max x), over the last axis."""
        node = self.node(exponentials, "Exp")
        node = None if node is None else self.node(node.input[0], "Sub")
        if node is None or self.over_last_axis(node.input[1], "ReduceMax") != node.input[0]:
            return None
        return node.input[0]


def _attention(known: _Known, node: Node) -> list[Node] | None:
    """(exp(x - max) V) / sum exp(x - max): softmax(x) V."""
    product = known.node(node.input[0], "MatMul") if node.op_type == "Div" else None
    if product is None or known.over_last_axis(node.input[1], "ReduceSum") != product.input[0]:
        return None
    scores = known.scores_of(product.input[0])
    if scores is None:
        return None
    weights = known.graph.fresh("softmax")
    known.graph.shapes[weights] = known.graph.shapes[scores]
    return [
        helper.make_node("Softmax", [scores], [weights], axis=-1),
        helper.make_node("MatMul", [weights, product.input[1]], node.output),
    ]


def _softmax(known: _Known, node: Node) -> list[Node] | None:
    """exp(x - max) / sum exp(x - max)."""
    if node.op_type != "Div" or known.over_last_axis(node.input[1], "ReduceSum") != node.input[0]:
        return None
    scores = known.scores_of(node.input[0])
    return None if scores is None else [helper.make_node("Softmax", [scores], node.output, axis=-1)]


def _norm(known: _Known, node: Node) -> list[Node] | None:
    """A norm times a vector, its scale, or plus a vector, its bias; if it has none of that kind yet."""
    if node.op_type not in ("Mul", "Add"):
        return None
    for name, other in (node.input, node.input[::-1]):
        norm, vector = known.node(name, "LayerNormalization"), known.array(other)
        features = None if norm is None else known.graph.shapes[norm.input[0]][-1]
        if norm is None or vector is None or vector.size != features or vector.shape[-1:] != (features,):
            continue
        names, vector = list(norm.input), known.graph.name(vector.reshape(-1))
        if len(names) > 2:
            continue
        if node.op_type == "Add":
            names.append(vector)
        elif np.all(known.array(names[1]) == 1):
            names[1] = vector
        else:
            continue
        made = helper.make_node("LayerNormalization", names, node.output)
        made.attribute.extend(norm.attribute)
        return [made]
    return None


def _gelu(known: _Known, node: Node) -> list[Node] | None:
    """x / 2 erfc(-x sqrt(1/2)) as x (1 + erf(x / sqrt 2)) / 2, which onnxruntime knows as GELU."""
    if node.op_type != "Mul":
        return None
    for half, complement in (node.input, node.input[::-1]):
        halved, rest = known.node(half, "Mul"), known.node(complement, "Sub")
        erf = None if rest is None or not known.is_number(rest.input[0], 1.0) else known.node(rest.input[1], "Erf")
        scaled = None if erf is None else known.node(erf.input[0], "Mul")
        if halved is None or scaled is None:
            continue
        negated = known.node(known.other(scaled, SQRT_HALF) or "", "Neg")
        x = known.other(halved, 0.5)
        if x is None or negated is None or negated.input[0] != x:
            continue
        graph, dtype = known.graph, np.float32
        root, one, share = (graph.name(np.array(number, dtype)) for number in (2**0.5, 1.0, 0.5))
        names = [graph.fresh("gelu") for _ in range(4)]
        graph.shapes |= dict.fromkeys(names, graph.shapes[x])
        return [
            helper.make_node("Div", [x, root], [names[0]]),
            helper.make_node("Erf", [names[0]], [names[1]]),
            helper.make_node("Add", [names[1], one], [names[2]]),
            helper.make_node("Mul", [x, names[2]], [names[3]]),
            helper.make_node("Mul", [names[3], share], node.output),
        ]
    return None


def _gelu_tanh(known: _Known, node: Node) -> list[Node] | None:
    """x (1 + tanh u) / 2 with x halved first, which onnxruntime knows as GELU by tanh."""
    if node.op_type != "Mul":
        return None
    for x, factor in (node.input, node.input[::-1]):
        share = known.node(factor, "Mul")
        above_one = None if share is None else known.other(share, 0.5)
        total = known.node(above_one or "", "Add")
        if total is None or known.node(known.other(total, 1.0) or "", "Tanh") is None:
            continue
        halved = known.graph.fresh("gelu")
        known.graph.shapes[halved] = known.graph.shapes[x]
        half = known.graph.name(np.array(0.5, np.float32))
        return [
            helper.make_node("Mul", [x, half], [halved]),
            helper.make_node("Mul", [halved, above_one], node.output),
        ]
    return None


def _relu(known: _Known, node: Node) -> list[Node] | None:
    """max(x, 0), not of whole numbers."""
    x = known.other(node, 0.0) if node.op_type == "Max" and len(node.input) == 2 else None
    zero = None if x is None else known.array(next(name for name in node.input if name != x))
    return None if zero is None or zero.dtype != np.float32 else [helper.make_node("Relu", [x], node.output)]


def _into_convolution(known: _Known, node: Node) -> list[Node] | None:
    """A convolution with features last, then plus, minus or times a vector: in its kernel and its bias."""
    if node.op_type not in ("Add", "Sub", "Mul"):
        return None
    pairs = (node.input,) if node.op_type == "Sub" else (node.input, node.input[::-1])
    for name, other in pairs:
        moved, vector = known.node(name, "Transpose"), known.array(other)
        made = None if moved is None else known.node(moved.input[0], "Conv")
        if made is None or vector is None or known.uses[name] > 1 or known.uses[moved.input[0]] > 1:
            continue
        kernel, axes = known.array(made.input[1]), list(moved.attribute[0].ints)
        if kernel is None or axes[-1] != 1 or vector.size != len(kernel) or vector.shape[-1:] != (len(kernel),):
            continue
        graph, vector = known.graph, known.graph.reshape(vector, (len(kernel),))
        bias = known.array(made.input[2]) if len(made.input) > 2 else None
        if node.op_type == "Mul":
            kernel = kernel * vector.reshape(-1, *(1,) * (kernel.ndim - 1))
            bias = None if bias is None else bias * vector
        elif node.op_type == "Sub":
            bias = -vector if bias is None else bias - vector
        else:
            bias = vector if bias is None else bias + vector
        sum_name = graph.fresh("conv")
        graph.shapes[sum_name] = graph.shapes[moved.input[0]]
        inputs = [made.input[0], graph.name(kernel), *([] if bias is None else [graph.name(bias)])]
        convolution = helper.make_node("Conv", inputs, [sum_name])
        convolution.attribute.extend(made.attribute)
        return [convolution, helper.make_node("Transpose", [sum_name], node.output, perm=axes)]
    return None


def _reshape(known: _Known, node: Node) -> list[Node] | None:
    """Two reshapes, one after the other: the second alone, or nothing where it undoes the first."""
    before = known.node(node.input[0], "Reshape") if node.op_type == "Reshape" else None
    if before is None:
        return None
    if known.graph.shapes[before.input[0]] == known.graph.shapes[node.output[0]]:
        return [helper.make_node("Identity", [before.input[0]], node.output)]
    return [helper.make_node("Reshape", [before.input[0], node.input[1]], node.output)]


REWRITES = (_reshape, _attention, _softmax, _norm, _gelu, _gelu_tanh, _relu, _into_convolution)
