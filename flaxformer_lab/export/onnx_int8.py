"""8-bit weights for ONNX files, by the quantiser of onnxruntime.

Products and convolutions whose weights are constants take int8 weights, one scale a column or channel; everything else
stays float32. Inputs of a product become uint8 with a scale that is measured at each call (dynamic), or was measured
on examples when the file was written (calibrated).
"""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flaxformer_lab.errors import ConfigError

Arrays = dict[str, np.ndarray]
OPERATORS = ["MatMul", "Conv"]


def quantise(content: bytes, examples: Iterable[Arrays] | None) -> bytes:
    """The bytes of an ONNX file with 8-bit weights.

    examples: batches of inputs that the scales of a calibrated file are measured on; None makes a dynamic one.

    Raises:
        ConfigError: the file has not become smaller, so the quantiser has passed over its weights.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Iterable[Arrays]):
            self._batches = iter(batches)

        def get_next(self) -> Arrays | None:
            return next(self._batches, None)

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content))
    options = {"op_types_to_quantize": OPERATORS, "per_channel": True}
    options["extra_options"] = {"MatMulConstBOnly": True, "EnableSubgraph": examples is None}
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # the quantiser advises a step that these files do not need
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            if examples is None:
                quantize_dynamic(model, path, weight_type=QuantType.QInt8, **options)
            else:
                options |= {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
                quantize_static(model, path, Reader(examples), **options)
            made = path.read_bytes()
    finally:
        logging.root.setLevel(level)
    if len(made) >= len(content):
        raise ConfigError(
            f"--int8: the file has not shrunk ({len(content):,} bytes, then {len(made):,}), since no large weight "
            "belongs to a product or a convolution; leave --int8 out"
        )
    return made
