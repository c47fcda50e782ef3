"""8-bit weights for ONNX files, by the quantiser of onnxruntime.

Products and convolutions whose weights are constants take int8 weights, one scale a column or channel; everything else
stays float32. Inputs of a product become uint8 with a scale that is measured at each call (dynamic), or was measured
on examples when the file was written (calibrated). Inside loops, as recurrent models are, each step measures its own.

A weight takes 7 of its 8 bits: processors with AVX2 and without VNNI add two products in 16 bits, which overflow in
silence at 255 x 127 x 2. So a file gives the same on every processor.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from flaxformer_lab.errors import ConfigError

Arrays = dict[str, np.ndarray]
OPERATORS = ["MatMul", "Conv"]
FLOAT = 1  # as TensorProto.data_type
LARGE = 256  # numbers from which on a weight in float32 counts as passed over


def quantise(content: bytes, examples: Iterable[Arrays] | None) -> bytes:
    """The bytes of an ONNX file with 8-bit weights.

    examples: batches of inputs that the scales of a calibrated file are measured on; None makes a dynamic one.

    Raises:
        ConfigError: the file has not become smaller, or the quantiser has passed over a large weight of a product.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Iterable[Arrays]):
            self._batches = iter(batches)

        def get_next(self) -> Arrays | None:
            return next(self._batches, None)

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content))
    for node in _in_batches(model.graph):
        node.name = node.output[0]  # by which the quantiser leaves it out
    options = {"op_types_to_quantize": OPERATORS, "weight_type": QuantType.QInt8, "reduce_range": True}
    constant = {"MatMulConstBOnly": True}
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # the quantiser advises a step that these files do not need
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            if examples is not None:
                calibrated = {"activation_type": QuantType.QUInt8, "per_channel": True, "extra_options": constant}
                quantize_static(model, path, Reader(examples), **options, **calibrated)
                model = onnx.load(path)
            # Calibration does not see into loops. Matrices in a batch have one scale: onnxruntime refuses one a column.
            for per_channel in (True, False):
                if any(_products(model.graph)) or (per_channel and examples is None):
                    left_out = [node.name for node in _in_batches(model.graph)] if per_channel else []
                    more = {"nodes_to_exclude": left_out, "extra_options": constant | {"EnableSubgraph": True}}
                    quantize_dynamic(model, path, per_channel=per_channel, **options, **more)
                    model = onnx.load(path)
            made = path.read_bytes()
    finally:
        logging.root.setLevel(level)
    if len(made) >= len(content):
        raise ConfigError(
            f"--int8: the file has not shrunk ({len(content):,} bytes, then {len(made):,}), since no large weight "
            "belongs to a product or a convolution; leave --int8 out"
        )
    large = {each.name for _, each in _products(onnx.load_model_from_string(made).graph) if np.prod(each.dims) >= LARGE}
    if large:
        raise ConfigError(
            f"--int8: the quantiser passes over {', '.join(sorted(large))}, which would stay float32; leave --int8 "
            "out, or take --float16"
        )
    return made


def convolves(content: bytes) -> bool:
    """Whether an ONNX file has convolutions, for which onnxruntime is fast with calibrated scales alone."""
    import onnx

    return any(node.op_type == "Conv" for node in onnx.load_model_from_string(content).graph.node)


def _in_batches(graph: Any) -> list[Any]:
    """The nodes that multiply by several constant matrices, one for each head, say."""
    return [node for node, weight in _products(graph) if node.op_type == "MatMul" and len(weight.dims) > 2]


def _products(graph: Any, outside: Mapping[str, Any] = MappingProxyType({})) -> Iterator[tuple[Any, Any]]:
    """The nodes that multiply by a float32 constant, and the constant; also in the bodies of loops."""
    known = {**outside, **{each.name: each for each in graph.initializer if each.data_type == FLOAT}}
    for node in graph.node:
        if node.op_type in OPERATORS and node.input[1] in known:
            yield node, known[node.input[1]]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _products(attribute.g, known)
