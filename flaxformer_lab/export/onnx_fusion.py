"""Groups of nodes that an operator of ONNX stands for, and nodes that nothing asks for.

What JAX traces is finer than what runtimes have kernels for. A runtime for one example on a small device spends as long
on calling a small node as on its arithmetic, so a softmax or a norm in eight nodes takes several times as long as in
one. onnxruntime looks for the groups that PyTorch writes, which ours are not.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from flaxformer_lab.export.onnx_graph import Graph, names_in

Node = onnx.NodeProto
SQRT_HALF = 0.5**0.5


def fuse(graph: Graph, outputs: Sequence[str]) -> None:
    """Rewrites the nodes of a graph in place; the outputs, and the numbers up to rounding, stay as they are."""
    for rewrite in (_attention, _softmax, _scaled_norm, _shifted_norm, _gelu):
        known = _Known(graph)
        graph.nodes = [made for node in graph.nodes for made in rewrite(known, node) or [node]]
        graph.nodes = [*_needed(graph.nodes, outputs)]


def _needed(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & {*node.output}:
            kept.append(node)
            wanted |= {*names_in([node])}
    return kept[::-1]


class _Known:
    """The node of each value, and the constants."""

    def __init__(self, graph: Graph):
        self.graph = graph
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


def _scaled_norm(known: _Known, node: Node) -> list[Node] | None:
    """A norm times a vector: the vector is its scale."""
    return _with_vector(known, node, "Mul")


def _shifted_norm(known: _Known, node: Node) -> list[Node] | None:
    """A norm plus a vector: the vector is its bias."""
    return _with_vector(known, node, "Add")


def _with_vector(known: _Known, node: Node, kind: str) -> list[Node] | None:
    """LayerNormalization with the vector of the Mul or Add behind it, if it has none of that kind yet."""
    if node.op_type != kind:
        return None
    for name, other in (node.input, node.input[::-1]):
        norm, vector = known.node(name, "LayerNormalization"), known.array(other)
        features = None if norm is None else known.graph.shapes[norm.input[0]][-1]
        if norm is None or vector is None or vector.size != features or vector.shape[-1:] != (features,):
            continue
        names, vector = list(norm.input), known.graph.name(vector.reshape(-1))
        if kind == "Mul" and len(names) == 2 and np.all(known.array(names[1]) == 1):
            names[1] = vector
        elif kind == "Add" and len(names) == 2:
            names.append(vector)
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
