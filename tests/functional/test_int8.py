"""Matrices in 8 bits against the same numbers in float64, and a network with them token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.int8 import Int8Matrix, int8_matmul, to_int8
from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.models.decoding import Decoder
from flaxformer_lab.models.quantization import quantized
from flaxformer_lab.tasks import make_task

MATRIX = np.random.default_rng(0).normal(size=(24, 10)).astype(np.float32)
MATRIX[:, 3] *= 1000
MATRIX[:, 4] = 0


def test_each_entry_is_within_half_a_step_of_its_column():
    found = to_int8(jnp.asarray(MATRIX))
    assert found.values.dtype == jnp.int8
    error = np.abs(np.float64(found.values) * np.float64(found.scale) - MATRIX)
    step = np.abs(MATRIX).max(axis=0) / 127
    assert np.all(error <= 0.5001 * step)
    np.testing.assert_array_equal(np.abs(found.values).max(axis=0), np.where(step > 0, 127, 0))
    np.testing.assert_array_equal(found.astype(jnp.float32)[:, 4], 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_products_are_those_of_the_dequantised_matrix_in_float64(dtype, tolerance):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 24)), dtype)
    matrix = to_int8(jnp.asarray(MATRIX))
    whole = np.float64(matrix.values) * np.float64(matrix.scale)
    expected = np.float64(np.asarray(x, np.float32)) @ whole
    found = int8_matmul(x, matrix)
    assert found.dtype == x.dtype
    scale = np.abs(whole).max(axis=0) * 5 + 1e-9
    assert np.max(np.abs(np.float64(np.asarray(found, np.float32)) - expected) / scale) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_network_is_the_network_of_its_dequantised_matrices(draw, dtype):
    """Logits, greedy symbols, and that its matrices stay in 8 bits, also where others are cast to 16."""
    model = {"width": 16, "depth": 1, "causal": True, "attention": {"num_heads": 2}, "dtype": dtype}
    config = parse_config({"task": {"name": "language_modelling", "sequence_length": 12}, "model": model})
    network = make_task(config.task, {"num_symbols": 7, "symbols": "?abcdef"}).network(config.model)
    params = draw(network.shapes[0])
    small = quantized(network, params)
    parts = dict(zip(leaf_paths(params), jax.tree.structure(params).flatten_up_to(small), strict=True))
    matrices = {name: part for name, part in parts.items() if isinstance(part, Int8Matrix)}
    assert set(matrices) == {name for name in parts if name.endswith(".kernel")}
    whole = {name: matrix.values * matrix.scale[None] for name, matrix in matrices.items()}
    symbols = np.random.default_rng(2).integers(0, 7, (2, 12)).astype(np.int32)
    apply = jax.jit(lambda params, symbols: network.apply(params, {}, symbols)[0])
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    np.testing.assert_allclose(
        apply(small, symbols), apply(replace_leaves(params, whole), symbols), rtol=tolerance, atol=tolerance
    )
    decoder = Decoder(network, small, {}, context=12, temperature=0.0)
    (text,) = (np.concatenate(pieces) for pieces in zip(*decoder.write([symbols[0, :5]], 3), strict=True))
    assert {leaf.dtype for leaf in jax.tree.leaves(decoder._variables[0])} >= {jnp.dtype("int8")}
    known = symbols[0, :5].tolist()
    for symbol in text:
        padded = np.zeros((2, 12), np.int32)
        padded[0, : len(known)] = known
        assert symbol == np.argmax(apply(small, padded)[0, len(known) - 1])
        known.append(int(symbol))
