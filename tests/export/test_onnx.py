"""Primitives of JAX against what onnxruntime computes, and files of 8 and 16 bits."""

import dataclasses
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxformer_lab import registry
from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.export import formats, onnx, onnx_int8
from flaxformer_lab.export.formats import load_exported
from flaxformer_lab.functional.convolution import convolution_2d, max_pool_2d
from flaxformer_lab.functional.normalization import layer_norm, rms_norm, standardised
from flaxformer_lab.functional.platform import portable_forms
from flaxformer_lab.functional.quantiles import to_normal
from flaxformer_lab.functional.softmax_attention import softmax_attention
from flaxformer_lab.model_config import AttentionConfig, TransformerConfig
from flaxformer_lab.run import load_run
from flaxformer_lab.training.loop import train
from tests.export.test_any_batch import IMAGES, forward_of
from tests.export.test_any_batch import TABLE as TABLE_TASK

runtime = pytest.importorskip("onnxruntime")
ONNX = pytest.importorskip("onnx")

W = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
FILTERS = np.random.default_rng(2).normal(size=(3, 2, 3, 4)).astype(np.float32)
TABLE = np.arange(21, dtype=np.float32).reshape(7, 3)


def windowed_scatter(a, i):
    """A window of two elements of each row goes to a place that the row chooses."""
    numbers = lax.ScatterDimensionNumbers((1,), (), (1,), (0,), (0,))
    return lax.scatter_add(a[:, 0], i[:, :1] + 3, a[:, 1, :2], numbers, mode="drop")


def places(values, side):
    """Among numbers with a NaN at their end; of values with a NaN and zeros of both signs."""
    values = values.at[:, 0, :3].set(np.array([[np.nan, 0.0, -0.0]], np.float32))
    return jnp.searchsorted(np.array([-1, 0, 0, 0.5, np.nan], np.float32), values, side=side)


def of_spectra(x, y):
    """A correlation by Fourier transforms of odd length along an axis that is padded; and of even length."""
    odd = jnp.fft.irfft(jnp.fft.rfft(x, n=7, axis=1) * jnp.conj(jnp.fft.rfft(y, n=7, axis=1)), n=7, axis=1)
    return odd[:, :4] + jnp.fft.irfft(jnp.fft.rfft(y).sum(1, keepdims=True) / 3 - 2 * jnp.fft.rfft(x), n=6)


def of_complex(x, y):
    """What keeps both parts, and what mixes them."""
    z = lax.complex(x, 30 * y) * lax.complex(y[:, :1], jnp.asarray(W[:4, :1])[None])
    z = jnp.concatenate([-z, z.mean((1,), keepdims=True) + 1], axis=1).transpose(0, 2, 1)
    z = jnp.tanh(z[:, 1:].reshape(-1, 25))
    return z.real * 2 - z.imag


# Of x [batch, 4, 6], positive; y like x, of both signs; i [batch, 3], from -2 to 8.
FUNCTIONS = {
    "add, sub, mul, div": lambda x, y, i: (x + y - 2 * y) / x,
    "scalars and vectors": lambda x, y, i: 3 - x * np.arange(6, dtype=np.float32)[None, None],
    "max, min, clamp": lambda x, y, i: jnp.maximum(x, y) + jnp.minimum(y, 0.1) + jnp.clip(y, -0.2, 0.3),
    "pow, square, cube, inverse": lambda x, y, i: x**1.7 + y**2 + y**3 + x**-1,
    "exp, log, log1p, expm1": lambda x, y, i: jnp.exp(y) + jnp.log(x) + jnp.log1p(x) + jnp.expm1(y),
    "log1p, expm1 near 0": lambda x, y, i: 1e6 * (jnp.log1p(1e-6 * y) + jnp.expm1(1e-6 * x)),
    "tanh, logistic, erf, erfc": lambda x, y, i: jnp.tanh(y) + jax.nn.sigmoid(y) + lax.erf(y) + lax.erfc(y),
    "sqrt, rsqrt, abs, sign, neg": lambda x, y, i: jnp.sqrt(x) + lax.rsqrt(x) + abs(y) + jnp.sign(y) - y,
    "floor, ceil, round": lambda x, y, i: jnp.floor(3 * y) + jnp.ceil(y) + jnp.round(3 * y),
    "sin, cos": lambda x, y, i: jnp.sin(y) + jnp.cos(y),
    "activations": lambda x, y, i: jax.nn.gelu(y, approximate=False) + jax.nn.relu(y) + jax.nn.silu(y),
    "softmax": lambda x, y, i: jax.nn.softmax(y, axis=1) + jax.nn.logsumexp(y, axis=-1, keepdims=True),
    "comparisons, where": lambda x, y, i: jnp.where((y > 0) & ~(x <= 0.9) | (y == x), x, y) + (y >= x) + (y < 0.3),
    "not equal, xor": lambda x, y, i: jnp.where((i != 2) ^ (i > 0), 1.0, 0.0),
    "select of three": lambda x, y, i: lax.select_n(jnp.clip(i, 0, 2), 1.0 * i, 2.0 * i, 3.0 * i),
    "finite": lambda x, y, i: jnp.where(jnp.isfinite(jnp.where(y > 0, y / 0, y)) & ~jnp.isnan(y), 1.0, 2.0),
    "places among sorted values": lambda x, y, i: places(x, "left") + 10 * places(y, "right") + i.max(),
    "values by their ranks": lambda x, y, i: to_normal(y[:, 0], np.sort(W, axis=1).T),
    "places among whole numbers": lambda x, y, i: jnp.searchsorted(np.array([-1, 3, 3], np.int32), i),
    "remainder, whole numbers": lambda x, y, i: lax.rem(i, jnp.int32(3)) + i // 2 + jnp.minimum(i, 4) * i,
    "casts": lambda x, y, i: (3 * y).astype(jnp.int32) + (i > 0).sum(axis=1).astype(jnp.float32)[:, None, None],
    "broadcast": lambda x, y, i: jnp.broadcast_to(x[:, :1], x.shape) * jnp.ones((4, 1))[None] + jnp.zeros(x.shape),
    "reshape, transpose": lambda x, y, i: x.reshape(-1, 6).T.reshape(6, -1, 4).transpose(1, 2, 0),
    "concatenate, stack, split": lambda x, y, i: jnp.stack(jnp.split(jnp.concatenate([x, y], 2), 3, axis=2), 1),
    "tile, flip": lambda x, y, i: jnp.tile(x, (1, 2, 1))[:, ::-1],
    "slices": lambda x, y, i: x[:, 1:4:2, -3:] + x[:, :1, :3],
    "pad": lambda x, y, i: lax.pad(y, jnp.float32(2), ((0, 0, 0), (1, -1, 0), (-1, 2, 1))),
    "edges": lambda x, y, i: jnp.pad(y, ((0, 0), (2, 1), (0, 0)), mode="edge"),
    "sums": lambda x, y, i: y.sum((1, 2)) + y.mean(axis=1).max(axis=1) + y.min((1, 2)) + jnp.prod(x[:, :, 0], axis=1),
    "any, all": lambda x, y, i: jnp.any(y > 1, axis=1) + 2 * jnp.all(y < 1, axis=1),
    "sum of what is repeated": lambda x, y, i: jnp.broadcast_to(x[:, :1], x.shape).sum(axis=1),
    "argmax, argmin": lambda x, y, i: jnp.argmax(y, axis=1) + jnp.argmin(y, axis=1),
    "cumsum": lambda x, y, i: jnp.cumsum(y, axis=1) + lax.cumsum(y, axis=2, reverse=True),
    "top_k": lambda x, y, i: jnp.concatenate(lax.top_k(jnp.floor(y), 4), axis=2),
    "sort, argsort": lambda x, y, i: jnp.sort(y, axis=1) + jnp.argsort(jnp.floor(y), axis=1),
    "dense": lambda x, y, i: x @ W,
    "dense from the left": lambda x, y, i: jnp.einsum("fo,btf->otb", W, x),
    "dense over two axes": lambda x, y, i: jnp.tensordot(x, np.arange(48.0, dtype=np.float32).reshape(4, 6, 2), 2),
    "products in a batch": lambda x, y, i: jnp.einsum("bqf,bkf->bkq", x, y),
    "products of several axes": lambda x, y, i: jnp.einsum(
        "bthf,bshf->bhts", x.reshape(-1, 4, 2, 3), y.reshape(-1, 4, 2, 3)
    ),
    "vectors": lambda x, y, i: jnp.einsum("btf,btf->bt", x, y) + y[0, 0] @ x[0, 1],
    "convolution 1d, strided": lambda x, y, i: lax.conv_general_dilated(
        x, FILTERS[0, :1, :1].repeat(6, 1).repeat(3, 0), (2,), [(1, 0)], dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "convolution 2d, in groups": lambda x, y, i: lax.conv_general_dilated(
        x.reshape(-1, 4, 2, 3),
        FILTERS[:, :, :1].repeat(3, 3),
        (1, 1),
        "SAME",
        rhs_dilation=(2, 1),
        feature_group_count=3,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "rows of a table": lambda x, y, i: jnp.asarray(TABLE).at[i].get(mode="fill", fill_value=7.0),
    "rows, clipped": lambda x, y, i: jnp.asarray(TABLE).at[i].get(mode="clip"),
    "rows of an axis within": lambda x, y, i: jnp.take(x, jnp.abs(i[0]) % 4, axis=1, mode="clip"),
    "take along an axis": lambda x, y, i: jnp.take_along_axis(y, (jnp.abs(i) % 6)[:, None], axis=2),
    "take without filling": lambda x, y, i: jnp.nan_to_num(jnp.take_along_axis(y, i[:, None], axis=2), nan=5.0),
    "elements by row": lambda x, y, i: x[jnp.arange(x.shape[0]), jnp.abs(i[:, 0]) % 4],
    "dynamic slice": lambda x, y, i: lax.dynamic_slice(y, (0, i[0, 0], 2), (y.shape[0], 3, 2)),
    "dynamic update": lambda x, y, i: lax.dynamic_update_slice(x, y[:, :2, :3], (0, i[0, 1], i[0, 2])),
    "scatter": lambda x, y, i: x.at[jnp.arange(x.shape[0]), i[:, 0]].set(5.0),
    "scatter, added": lambda x, y, i: jnp.zeros((9,)).at[i.reshape(-1)].add(1.0)[None] + x[:, 0, :1],
    "scatter, multiplied": lambda x, y, i: x.at[:, jnp.abs(i[0]) % 4].multiply(y[:, :3]),
    "scatter, least": lambda x, y, i: x.at[:, jnp.abs(i[0]) % 4].min(y[:, :3]),
    "scatter, largest": lambda x, y, i: x.at[:, jnp.abs(i[0]) % 4].max(y[:, :3]),
    "scatter, windows": lambda x, y, i: windowed_scatter(x, i),
    "positions": lambda x, y, i: jnp.arange(x.shape[0])[:, None] * jnp.arange(3)[None],
    "size of the batch": lambda x, y, i: x / jnp.float32(x.shape[0]),
    "random numbers": lambda x, y, i: x + jax.random.normal(jax.random.fold_in(jax.random.key(0), 3), (4, 6))[None],
    "scan": lambda x, y, i: lax.scan(lambda c, a: (c * 0.9 + a @ W[:, :1], c + a), x[:, 0, :1], x.swapaxes(0, 1))[1],
    "scan, reversed": lambda x, y, i: lax.scan(lambda c, a: (c + a, c * a), x[:, 0], y.swapaxes(0, 1), reverse=True)[1],
    "loop of a known length": lambda x, y, i: lax.fori_loop(0, 3, lambda n, a: a * 0.5 + n + y, x),
    "loop until": lambda x, y, i: lax.while_loop(lambda a: a.sum() < 100, lambda a: a * 2 + x, x),
    "map": lambda x, y, i: lax.map(lambda row: row * W[0, 0] + 1, x.swapaxes(0, 1)),
    "Fourier transforms": lambda x, y, i: of_spectra(x, y),
    "complex numbers": lambda x, y, i: of_complex(x, y),
    "custom gradient": lambda x, y, i: jax.nn.relu6(y) + jax.checkpoint(jnp.sin)(x),
    "16 bits": lambda x, y, i: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32) - x.astype(jnp.float16),
}
# Which a file does in float32.
LOOSE = {"16 bits": 2e-2}


def arguments(batch):
    """x, y and i for so many examples."""
    rng = np.random.default_rng(batch)
    x = rng.uniform(0.3, 2, (batch, 4, 6)).astype(np.float32)
    return {
        "x": x,
        "y": rng.normal(size=x.shape).astype(np.float32),
        "i": rng.integers(-2, 9, (batch, 3)).astype(np.int32),
    }


def written(functions):
    """An ONNX file whose outputs are those of the functions."""
    (batch,) = jax.export.symbolic_shape("batch")
    spec = {k: jax.ShapeDtypeStruct((batch, *v.shape[1:]), v.dtype) for k, v in arguments(2).items()}
    every = lambda variables, arrays: {str(n): f(**arrays) for n, f in enumerate(functions.values())}  # noqa: E731
    return onnx.write_graph(every, {}, spec, batch)


@pytest.fixture(scope="module")
def computed():
    """By function: outputs of onnxruntime and of JAX, for a batch of 3 and one of 1."""
    session = onnx.open_session(written(FUNCTIONS))
    names = [each.name for each in session.get_outputs()]
    found = {}
    with jax.numpy_rank_promotion("allow"):
        for batch in (3, 1):
            arrays = arguments(batch)
            outputs = dict(zip(names, session.run(names, arrays), strict=True))
            expected = jax.jit(lambda a: [f(**a) for f in FUNCTIONS.values()])(arrays)
            for number, (name, value) in enumerate(zip(FUNCTIONS, expected, strict=True)):
                found.setdefault(name, []).append((outputs[str(number)], np.asarray(value)))
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_primitive(computed, name):
    for found, expected in computed[name]:
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=LOOSE.get(name, 3e-6), atol=LOOSE.get(name, 3e-6))
    assert np.ptp(computed[name][0][1]) > 0


def test_what_no_primitive_of_onnx_computes_is_named():
    for function, reason in (
        (lambda x, y, i: jnp.fft.fft(x).real, "a Fourier transform of kind FFT over 1 axes has no form in ONNX"),
        (lambda x, y, i: jnp.fft.rfft2(x).real, "a Fourier transform of kind RFFT over 2 axes has no form in ONNX"),
        (lambda x, y, i: jnp.exp(lax.complex(x, y)).real, "exp of complex numbers"),
        (lambda x, y, i: lax.erf_inv(x - 1), "the primitive erf_inv has no form in ONNX here"),
    ):
        with pytest.raises(ConfigError, match=reason):
            written({"one": function})
    with pytest.raises(ConfigError, match="no whole number of times the batch"):
        written({"half": lambda x, y, i: jnp.zeros((x.shape[0] + 1,)) + x[0, 0, 0]})


# ------------------------------------------------------------------------------------------------ whole models

DIGITS = {
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 2},
    "model": {"width": 32, "depth": 1, "attention": {"num_heads": 2}},
    "optimizer": {"learning_rate": 0.005, "warmup_steps": 10},
    "training": {"steps": 120, "batch_size": 64, "evaluate_batch_size": 300, "steps_per_call": 120},
    "parallelism": {"strategy": "single"},
}


@pytest.fixture(scope="module")
def digits(decoded_once, tmp_path_factory):
    """A run that has learned something."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    train(parse_config(DIGITS), folder, quiet=True)
    return load_run(folder)


@pytest.fixture(scope="module")
def exported(digits, tmp_path_factory):
    """By name: files of each precision; not to be written."""
    folder = tmp_path_factory.mktemp("files")
    options = {"float32": {}, "float16": {"precision": "float16"}, "int8": {"precision": "int8"}}
    options["calibrated"] = {"precision": "int8", "calibrate": 64}
    return {
        name: digits.export(folder / f"{name}.onnx", "onnx", examples=300, **each) for name, each in options.items()
    }


@pytest.mark.integration
def test_score_and_size_of_each_precision(digits, exported):
    sizes = {name: each.description["bytes"] for name, each in exported.items()}
    assert (
        sizes["float16"] < 0.7 * sizes["float32"] and max(sizes["int8"], sizes["calibrated"]) < 0.7 * sizes["float32"]
    )
    stored = digits.task.examples("validation").load()
    labels = np.asarray(stored["label"][:300])
    of_run = np.mean(np.asarray(digits.predict(stored["image"][:300])).argmax(axis=1) == labels)
    assert of_run > 0.8
    for name, each in exported.items():
        right = np.mean(np.argmax(load_exported(each.path).predict(stored["image"][:300]), axis=1) == labels)
        parity = each.description["parity"]
        assert parity["score"] == "accuracy" and parity["lost"] == pytest.approx(of_run - right, abs=1e-6)
        assert abs(of_run - right) <= 0.01, name
        assert each.description["latency"]["seconds"] > 0
    parity = exported["float32"].description["parity"]
    assert parity["largest_difference"] <= parity["tolerance"] < 1e-3
    assert exported["int8"].description["parity"]["tolerance"] is None


@pytest.mark.integration
def test_weights_are_those_of_products_so_that_a_quantiser_finds_them(digits, exported):
    graph = ONNX.load(exported["float32"].path).graph
    kinds = {node.op_type for node in graph.node}
    names = {each.name for each in graph.initializer}
    assert "Einsum" not in kinds and "MatMul" in kinds
    assert {"params.body.blocks.0.ffn.up.kernel", "params.head.kernel"} <= names
    dense = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    assert "params.body.blocks.0.ffn.up.kernel" in dense
    quantised = ONNX.load(exported["int8"].path).graph
    large = [each for each in quantised.initializer if np.prod(each.dims) >= 1000]
    assert large and {each.data_type for each in large} == {ONNX.TensorProto.INT8}


SCALE, SHIFT = np.linspace(1, 2, 6, dtype=np.float32), np.linspace(-1, 1, 6, dtype=np.float32)


def causal_attention(x, y, i):
    heads = [each.reshape(*each.shape[:2], 2, 3) for each in (x, y, x * y)]
    return softmax_attention(*heads, causal=True, implementation="row_blocks")


def filtered(y):
    return convolution_2d(y[..., None], jnp.asarray(W.reshape(-1)[:28].reshape(7, 4))[:4], 2)


# What becomes of each: operators that are there, and operators that are gone.
FUSED = {
    "attention": (causal_attention, {"Softmax": 1, "Exp": 0, "ReduceMax": 0, "ReduceSum": 0}),
    "softmax": (lambda x, y, i: jax.nn.softmax(y), {"Softmax": 1, "Exp": 0, "ReduceMax": 0}),
    "softmax over tokens": (lambda x, y, i: jax.nn.softmax(y, axis=1), {"Softmax": 0, "Exp": 1}),
    "norm": (lambda x, y, i: layer_norm(y, SCALE, SHIFT, 1e-3), {"LayerNormalization": 1, "Mul": 0, "Add": 0}),
    "norm without bias": (lambda x, y, i: layer_norm(y, SCALE, None, 1e-3), {"LayerNormalization": 1, "Mul": 0}),
    "norm of which both are asked for": (
        lambda x, y, i: (lambda z: z * SCALE + jnp.tanh(z))(standardised(y, 1e-3, True)),
        {"LayerNormalization": 2, "Sqrt": 0},
    ),
    "norm and a vector of tokens": (
        lambda x, y, i: standardised(y, 1e-3, True) * W[:4, :1],
        {"LayerNormalization": 1, "Mul": 1},
    ),
    "root mean square": (
        lambda x, y, i: rms_norm(y, SCALE, 1e-3),
        {"LayerNormalization": 0, "ReduceMean": 1, "Reciprocal": 0},
    ),
    "gelu": (lambda x, y, i: jax.nn.gelu(y, approximate=False), {"Erf": 1, "Neg": 0, "Sub": 0}),
    "erfc": (lambda x, y, i: y * lax.erfc(y), {"Erf": 1, "Sub": 1}),
    "gelu by tanh": (lambda x, y, i: jax.nn.gelu(y @ W, approximate=True) @ W.T, {"Tanh": 1, "Mul": 4}),
    "relu": (lambda x, y, i: jnp.maximum(y, 0), {"Relu": 1, "Max": 0}),
    "relu of whole numbers": (lambda x, y, i: jnp.maximum(i, 0), {"Relu": 0, "Max": 1}),
    "maximum": (lambda x, y, i: jnp.maximum(y, x), {"Relu": 0, "Max": 1}),
    "slice": (lambda x, y, i: x[:, 1:3, 2:], {"Slice": 1, "Gather": 0}),
    "row": (lambda x, y, i: x[:, -1], {"Slice": 1, "Gather": 0}),
    "reshaped and back": (lambda x, y, i: -jnp.tanh(y).reshape(-1, 24).reshape(-1, 4, 6), {"Reshape": 0, "Neg": 1}),
    "reshaped twice": (lambda x, y, i: y.reshape(-1, 24).reshape(-1, 8, 3), {"Reshape": 1}),
    "convolution and a batch norm": (
        lambda x, y, i: (filtered(y) + SHIFT[:4] - SCALE[:4]) * SCALE[1:5] + SHIFT[1:5],
        {"Conv": 1, "Add": 0, "Sub": 0, "Mul": 0},
    ),
    "convolution and a vector of rows": (lambda x, y, i: filtered(y) * SCALE[:4, None, None], {"Conv": 1, "Mul": 1}),
    "convolution that is used twice": (
        lambda x, y, i: (lambda z: (z + SHIFT[:4]) * jnp.tanh(z))(filtered(y)),
        {"Conv": 1, "Add": 1},
    ),
    "largest of windows": (lambda x, y, i: max_pool_2d(y[..., None], 3, 2), {"MaxPool": 1, "Max": 0}),
}


@pytest.mark.parametrize("name", FUSED)
def test_groups_of_nodes_become_one_operator(name):
    function, counts = FUSED[name]
    with portable_forms(), jax.numpy_rank_promotion("allow"):
        content, arrays = written({name: function}), arguments(3)
        expected = jax.jit(function)(**arrays)
    nodes = ONNX.load_model_from_string(content).graph.node
    kinds = [node.op_type for node in nodes]
    assert {kind: kinds.count(kind) for kind in counts} == counts
    read = {name for node in nodes for name in node.input} | {"0"}
    assert all(read & {*node.output} for node in nodes)
    (found,) = onnx.open_session(content).run(None, arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


KNOWN = {"gelu": "Gelu", "gelu by tanh": "FastGelu", "root mean square": "SimplifiedLayerNormalization"}


@pytest.mark.parametrize(("name", "kind"), KNOWN.items())
def test_onnxruntime_makes_one_node_of_ours(name, kind, tmp_path):
    options = runtime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    runtime.InferenceSession(written({name: FUSED[name][0]}), options, providers=["CPUExecutionProvider"])
    assert kind in {node.op_type for node in ONNX.load(tmp_path / "optimised.onnx").graph.node}


@pytest.mark.parametrize(("name", "task"), [("cnn_2d", IMAGES), ("cnn_1d", TABLE_TASK)])
def test_convolutions_stay_convolutions_and_keep_their_names(name, task):
    forward, rng = forward_of({"name": name, "width": 8, "depth": 1}, task), np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), forward.params)
    graph = ONNX.load_model_from_string(onnx.encode(dataclasses.replace(forward, params=drawn))).graph
    kernels = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert kernels == [f"params.body.blocks.0.{each}.map.kernel" for each in ("first", "second")]


def test_a_file_that_does_not_shrink_is_refused():
    small = written({"add": lambda x, y, i: x + y})
    for examples in (None, [arguments(2)]):
        with pytest.raises(ConfigError, match=r"--int8: the file has not shrunk \(\d+ bytes, then \d+\)"):
            onnx_int8.quantise(small, examples)


HEADS = np.random.default_rng(3).normal(size=(4, 6, 40)).astype(np.float32)
THERE, BACK = HEADS[0], HEADS[0].T / 80
INT8 = {
    "in a loop": lambda x, y, i: lax.scan(lambda c, a: (jnp.tanh(c @ THERE @ BACK + a), c), x[:, 0], x.swapaxes(0, 1))[
        1
    ],
    "one for each head": lambda x, y, i: jnp.einsum("htf,bhf->bht", HEADS.swapaxes(1, 2), y),
    "dense": lambda x, y, i: x @ HEADS[1],
}


@pytest.mark.parametrize("examples", [None, [arguments(8)]], ids=["dynamic", "calibrated"])
def test_weights_of_loops_and_of_heads_are_quantised(examples):
    """Which a quantiser passes over, or writes so that no runtime takes it."""
    float32 = written(INT8)
    int8 = onnx_int8.quantise(float32, examples)
    found, expected = (onnx.open_session(each).run(None, arguments(8)) for each in (int8, float32))
    for name, one, other in zip(INT8, found, expected, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=0.05 * scale, err_msg=name)
        assert np.abs(one - other).max() > 1e-5 * scale
    large = [each for each in ONNX.load_model_from_string(int8).graph.initializer if np.prod(each.dims) > 100]
    assert {each.data_type for each in large} == {ONNX.TensorProto.INT8}
    # Beyond 64, two products with an input of 255 overflow the 16 bits in which AVX2 adds them.
    assert all(np.abs(ONNX.numpy_helper.to_array(each).astype(int)).max() <= 64 for each in large)


def test_a_weight_that_stays_float32_is_named(monkeypatch):
    from onnxruntime import quantization

    only_conv = lambda *args, **options: quantize(*args, **options | {"op_types_to_quantize": ["Conv"]})  # noqa: E731
    quantize = quantization.quantize_dynamic
    monkeypatch.setattr(quantization, "quantize_dynamic", only_conv)
    kernel = np.ones((3, 6, 200), np.float32)
    order = ("NWC", "WIO", "NWC")
    conv = lambda x, y, i: lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=order)  # noqa: E731
    content = written({"conv": conv, "dense": lambda x, y, i: x @ HEADS.transpose(1, 0, 2).reshape(6, 160)})
    with pytest.raises(ConfigError, match=r"the quantiser passes over \w+, which would stay float32; leave --int8 out"):
        onnx_int8.quantise(content, None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"format": "stablehlo", "precision": "int8"}, "--format=stablehlo has parameters of float32, not int8"),
        ({"format": "onnx", "precision": "int4"}, "--format=onnx has parameters of float32, float16, int8, not int4"),
        ({"format": "onnx", "calibrate": 8}, "--calibrate=8 measures the scales of int8, not of float32; pass --int8"),
    ],
)
def test_precisions_that_a_format_does_not_have(digits, tmp_path, options, error):
    suffix = formats.FORMATS[options["format"]].suffix
    with pytest.raises(ConfigError, match=error):
        digits.export(tmp_path / f"a{suffix}", **options)


def test_without_the_packages_the_error_says_what_to_install(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs the packages onnx and onnxruntime: pip install -e '\.\[onnx\]'"):
        digits.export(tmp_path / "a.onnx", "onnx")


def test_a_graph_that_reaches_outside_is_not_read(exported, tmp_path):
    model = ONNX.load(exported["float32"].path)
    foreign = ONNX.ModelProto.FromString(model.SerializeToString())
    foreign.graph.node[0].domain = "elsewhere"
    outside = ONNX.ModelProto.FromString(model.SerializeToString())
    tensor = outside.graph.initializer[0]
    tensor.data_location = ONNX.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    for changed in (foreign, outside):
        (tmp_path / "a.onnx").write_bytes(changed.SerializeToString())
        with pytest.raises(RunError, match=r"a.onnx (calls operators of|keeps arrays in other files)"):
            onnx.read(tmp_path / "a.onnx")


@pytest.mark.parametrize("where", ["attribute", "loop", "function"])
def test_arrays_outside_are_found_wherever_they_hide(where, tmp_path):
    helper = ONNX.helper
    tensor = ONNX.TensorProto(name="w", dims=[1], data_type=1, data_location=ONNX.TensorProto.EXTERNAL)
    node, info = helper.make_node("Constant", [], ["y"], value=tensor), helper.make_tensor_value_info("y", 1, [1])
    functions = []
    if where == "loop":
        body = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "body", [], [], [tensor])
        node = helper.make_node("Loop", ["", ""], ["y"], body=body)
    elif where == "function":
        functions = [helper.make_function("", "Own", [], ["y"], [node], [helper.make_opsetid("", 18)])]
        node = helper.make_node("Own", [], ["y"])
    model = helper.make_model(helper.make_graph([node], "outer", [], [info]), functions=functions)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RunError, match=r"a\.onnx keeps arrays in other files"):
        onnx.read(tmp_path / "a.onnx")


def test_the_command_prints_size_score_and_latency(digits, run_command):
    arguments = (f"--workdir={digits.workdir}", "--format=onnx", "--int8", "--examples=20")
    code, out, _ = run_command("flaxformer_lab.export", *arguments)
    shown = "\n".join(out)
    assert code == 0 and "one example on 1 thread" in shown and "accuracy lost" in shown and "points" in shown
    assert f"{digits.workdir.name}-120-int8.onnx" in shown
    code, _, err = run_command("flaxformer_lab.export", *arguments, "--float16")
    assert code == 2 and "--int8 and --float16 are two precisions of one file; choose one" in err[0]


# ---------------------------------------------------------------------------------------------------- decoding

TEXT = {
    "task": {"name": "language_modelling", "sequence_length": 16},
    "model": {"width": 16, "depth": 1, "causal": True, "attention": {"num_heads": 2, "window": 5}},
    "training": {"steps": 2, "batch_size": 4, "steps_per_call": 2},
    "parallelism": {"strategy": "single"},
}


@pytest.fixture(scope="module")
def speeches(decoded_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speeches") / "run"
    train(parse_config(TEXT), folder, quiet=True)
    return load_run(folder)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_steps_of_decoding_write_the_same_text_as_the_run(speeches, tmp_path, format):
    """Greedily, two texts at once, from a cache of zeros."""
    path = tmp_path / f"step{formats.FORMATS[format].suffix}"
    step = speeches.export(path, format, decode=True, examples=3)
    symbols, prompts = step.description["metadata"]["symbols"], ["My fe", "o be "]
    assert [each["shape"][0] for each in step.description["inputs"]] == ["batch"] * len(step.spec)
    texts = [list(prompt) for prompt in prompts]
    arrays = {name: np.zeros((2, *like.shape[1:]), like.dtype) for name, like in step.spec.items()}
    for place in range(15):
        arrays["symbols"] = np.array([symbols.index(text[place]) for text in texts], np.int32)
        outputs = dict(step.predict(arrays))
        logits = outputs.pop("logits")
        arrays.update({name.replace("present_", "past_"): leaf for name, leaf in outputs.items()})
        if place >= 4:
            for text, row in zip(texts, np.asarray(logits), strict=True):
                text.append(symbols[int(row.argmax())])
    assert ["".join(text[5:]) for text in texts] == speeches.generate(prompts, 11, temperature=0.0)


def decoding_models():
    """Each kind of attention that decodes, with a window where it has one, shared heads, and each kind of positions."""
    for kind in registry.names("attention"):
        config = TransformerConfig(attention=AttentionConfig(kind=kind), causal=True)
        if registry.ask("attention", kind, "decodes", config):
            yield {"attention": {"num_heads": 2, "kind": kind}}
            if registry.ask("attention", kind, "windowed", config):
                yield {"attention": {"num_heads": 2, "kind": kind, "window": 5}, "position": "learned"}
    yield {"attention": {"num_heads": 4, "num_kv_heads": 2}, "position": "rotary"}
    yield {"attention": {"num_heads": 2}, "position": "sinusoidal", "ffn": {"kind": "gated"}, "depth": 2}


@pytest.mark.slow
@pytest.mark.parametrize("model", list(decoding_models()), ids=str)
def test_a_step_of_every_kind_has_the_logits_of_the_run(tmp_path, model):
    """Writing a file compares its logits, symbol by symbol, with the run's, and fails where they differ."""
    train(parse_config(TEXT | {"model": TEXT["model"] | model}), tmp_path, quiet=True)
    run = load_run(tmp_path)
    for name, written in formats.FORMATS.items():
        if name != "safetensors":
            step = run.export(tmp_path / f"step{written.suffix}", name, decode=True, examples=2)
            assert "logits" in step.predict({key: np.zeros((1, *x.shape[1:]), x.dtype) for key, x in step.spec.items()})


@pytest.mark.slow
def test_what_cannot_decode_is_refused(digits, speeches, tmp_path):
    with pytest.raises(ConfigError, match=r"--decode is for models of texts, not for task\.name=image_classification"):
        digits.export(tmp_path / "a.onnx", "onnx", decode=True)
    with pytest.raises(ConfigError, match="--decode writes a step as stablehlo or onnx"):
        speeches.export(tmp_path / "a.safetensors", "safetensors", decode=True)
