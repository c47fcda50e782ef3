"""ONNX: the whole model as a graph for onnxruntime, on any machine or in a browser, with a batch of any size.

import onnxruntime
session = onnxruntime.InferenceSession("digits.onnx")
(logits,) = session.run(None, {"image": images})
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from jaxtyping import Array

from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.export.forward import Forward, Spec, Tree, by_name
from flaxformer_lab.export.onnx_int8 import Arrays, quantise
from flaxformer_lab.functional.platform import portable_forms
from flaxformer_lab.functional.trees import leaf_paths

PRECISIONS = ("float32", "float16", "int8")
MOST_BYTES = 2**31 - 2**24  # the container (Protocol Buffers) ends at 2 GiB; the rest is for the nodes


def require() -> None:
    """Raises ConfigError where the packages of ONNX are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--format=onnx needs the packages onnx and onnxruntime: pip install -e '.[onnx]' in the lab's folder"
        ) from error


def encode(forward: Forward, precision: str = "float32", calibration: Iterable[Arrays] | None = None) -> bytes:
    """The bytes of the file, which computes in float32 (`Forward.in_float32`).

    precision: of the parameters. float16: each takes 2 bytes, and the arithmetic is float32 all the same. int8: those
        of products and convolutions take 1 byte, and so does their arithmetic.
    calibration: batches of inputs on which int8 measures the scales of activations; None measures them at each call.

    Raises:
        ConfigError: a package is missing, a part of the model has no form in ONNX or does not allow a batch of any
            size, the parameters are too large for one file, or a file of int8 is no smaller than one of float32.
    """
    require()
    forward = forward.in_float32
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((forward.params, forward.model_state)))
    if size > MOST_BYTES:
        raise ConfigError(
            f"--format=onnx holds at most {MOST_BYTES:,} bytes of parameters, not {size:,}; choose safetensors"
        )
    (batch,) = jax.export.symbolic_shape("batch")
    spec = {name: jax.ShapeDtypeStruct((batch, *like.shape[1:]), like.dtype) for name, like in forward.spec.items()}
    variables = {"params": forward.params, "model_state": forward.model_state}

    def program(variables: Tree, arrays: dict[str, Array]) -> Tree:
        return dataclasses.replace(forward, **variables)(**arrays)

    try:
        with portable_forms():
            content = write_graph(program, variables, spec, batch, float16=precision == "float16")
    except Exception as error:  # a user's part may fail in any way
        reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"--format=onnx: this model cannot become a graph of ONNX with a batch of any size: {reason}; "
            "try --format=stablehlo, or --format=safetensors for its weights"
        ) from error
    return quantise(content, calibration) if precision == "int8" else content


def write_graph(
    function: Callable[[Tree, Tree], Tree], variables: Tree, spec: Tree, batch: Any, *, float16: bool = False
) -> bytes:
    """function(variables, arrays) as an ONNX file, whose inputs and outputs have dotted names.

    variables: NumPy arrays, which become constants. spec: the arrays as shapes and types. batch: the size that is not
    known, as `jax.export.symbolic_shape` makes it.
    """
    from flaxformer_lab.export import onnx_fusion, onnx_graph
    from flaxformer_lab.export.onnx_operators import translate

    traced = jax.jit(function).trace(variables, spec)
    graph = onnx_graph.Graph(batch, float16=float16)
    constants = {name: np.asarray(leaf) for name, leaf in leaf_paths(variables).items()}
    graph.constant_names = {id(leaf): name for name, leaf in constants.items()}
    inputs = [graph.input(name, like.shape, like.dtype) for name, like in by_name(spec, "inputs").items()]
    given = [graph.arithmetic(each) for each in (*constants.values(), *inputs)]
    made = translate(graph, traced.jaxpr, given)
    outputs = []
    for (name, like), value in zip(by_name(traced.out_info, "outputs").items(), made, strict=True):
        outputs.append(graph.output(name, graph.whole(value, like.shape), like.dtype))
    onnx_fusion.fuse(graph, [each.name for each in outputs])
    return graph.model(outputs).SerializeToString()


def read(path: Path) -> tuple[Spec, Callable[..., Tree]]:
    """The inputs of a file's graph, by name, and the graph as a function.

    Raises:
        ConfigError: the packages of ONNX are missing.
        RunError: the file is damaged, of another kind, or reaches for other files or operators.
    """
    require()
    import onnx

    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # bytes that are no model fail in any way
        raise RunError(f"{path} is damaged, or no graph of ONNX: {type(error).__name__}: {error}") from error
    domains = {each.domain for each in (*model.opset_import, *_nodes(model.graph))} - DOMAINS
    if domains:
        raise RunError(f"{path} calls operators of {', '.join(sorted(domains))}, which no file of the lab does")
    if any(each.data_location or each.external_data for each in _tensors(model)):
        raise RunError(f"{path} keeps arrays in other files, which no file of the lab does; it is not read")
    try:
        session = open_session(content)
    except Exception as error:  # as above
        raise RunError(f"{path} is damaged, or no graph of ONNX: {type(error).__name__}: {error}") from error
    inputs = session.get_inputs()
    spec = {each.name: jax.ShapeDtypeStruct((1, *each.shape[1:]), TYPES[each.type]) for each in inputs}
    names = [each.name for each in session.get_outputs()]

    def function(**arrays: np.ndarray) -> Tree:
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        return _tree(dict(zip(names, session.run(names, arrays), strict=True)))

    return spec, function


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, with those of loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _tensors(message: Any) -> Iterator[Any]:
    """All arrays in a model or a part of it: initialisers and attributes, of loops and functions too."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in [value] if hasattr(value, "ListFields") else value:  # one message, or several
            if isinstance(each, onnx.TensorProto):
                yield each
            else:
                yield from _tensors(each)


DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # of the standard, and of onnxruntime's quantised products
TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(bool),
}


def open_session(content: bytes | Path | str, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU. threads: how many; 0 takes all cores."""
    require()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    content = str(content) if isinstance(content, Path) else content
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def latency(path: str | Path, arrays: dict[str, np.ndarray], repeats: int = 50) -> float:
    """Median seconds of one call of a file on one thread, after a tenth of the calls as a warm-up."""
    session = open_session(Path(path), threads=1)
    seconds = []
    for _ in range(repeats + repeats // 10 + 1):
        start = time.perf_counter()
        session.run(None, arrays)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[-repeats:])


def _tree(arrays: dict[str, np.ndarray]) -> Tree:
    """Nested dictionaries of dotted names; a single output that is called so is the tree."""
    if list(arrays) == ["outputs"]:
        return arrays["outputs"]
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *folders, name = path.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = array
    return tree
