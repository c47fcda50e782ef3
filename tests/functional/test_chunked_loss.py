"""The loss in chunks, against softmax regression by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.chunked_loss import choose_chunk, chunked_cross_entropy

ROWS, FEATURES, CLASSES = 13, 8, 17
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(ROWS, FEATURES))
KERNEL, BIAS = RANDOM.normal(size=(FEATURES, CLASSES)), RANDOM.normal(size=CLASSES)
TARGETS = RANDOM.integers(0, CLASSES, ROWS).astype(np.int32)
WEIGHTS = RANDOM.uniform(size=ROWS) * (np.arange(ROWS) % 4 != 1)
COMPILED = jax.jit(chunked_cross_entropy, static_argnames=("chunk", "gradients"))


def by_hand(bias):
    """(loss, correct), and the gradients for x, kernel and bias."""
    logits = X @ KERNEL + (0 if bias is None else bias)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    losses = -np.log(shares[np.arange(ROWS), TARGETS])
    error = (shares - np.eye(CLASSES)[TARGETS]) * WEIGHTS[:, None]
    sums = (losses * WEIGHTS).sum(), ((logits.argmax(axis=1) == TARGETS) * WEIGHTS).sum()
    return sums, (error @ KERNEL.T, X.T @ error, None if bias is None else error.sum(axis=0))


def in_chunks(chunk, bias, dtype=jnp.float32, gradients=True, targets=TARGETS):
    arrays = [None if each is None else jnp.asarray(each, jnp.float32) for each in (X, KERNEL, bias)]
    arguments = (arrays[0].astype(dtype), *arrays[1:], jnp.asarray(targets), jnp.asarray(WEIGHTS, jnp.float32))
    return COMPILED(*arguments, chunk=chunk, gradients=gradients)


@pytest.mark.parametrize(("chunk", "bias"), [(1, BIAS), (5, None), (13, BIAS), (20, None)], ids=[1, 5, 13, 20])
def test_the_sums_and_gradients_are_those_of_softmax_regression(chunk, bias):
    sums, gradients = by_hand(bias)
    found, pulled = in_chunks(chunk, bias)
    np.testing.assert_allclose(found, sums, rtol=1e-5)
    np.testing.assert_allclose(in_chunks(chunk, bias, gradients=False)[0], sums, rtol=1e-5)
    assert (pulled.bias is None) == (bias is None)
    for mine, expected in zip(jax.tree.leaves(pulled), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_gradients_of_parameters_are_summed_in_float32_where_rows_have_16_bits():
    found, pulled = in_chunks(5, BIAS, jnp.bfloat16)
    assert {name: leaf.dtype.name for name, leaf in pulled._asdict().items()} == {
        "x": "bfloat16",
        "kernel": "float32",
        "bias": "float32",
    }
    sums, gradients = by_hand(BIAS)
    np.testing.assert_allclose(found.loss, sums[0], rtol=0.02)
    np.testing.assert_allclose(pulled.kernel, gradients[1], atol=0.02 * np.abs(gradients[1]).max())


def test_a_target_that_is_no_class_gives_nan_unless_it_has_no_weight():
    targets = TARGETS.copy()
    targets[1] = CLASSES  # has no weight
    assert np.isfinite(in_chunks(5, BIAS, targets=targets)[0].loss)
    targets[2] = -1
    assert np.isnan(in_chunks(5, BIAS, targets=targets)[0].loss)


def test_no_array_of_all_logits_exists():
    """In a program that is not compiled: 4,096 rows of 1,000 classes, 64 at a time."""
    shapes = [(4096, 8), (8, 1000), (1000,), (4096,), (4096,)]
    dtypes = [jnp.float32] * 3 + [jnp.int32, jnp.float32]
    arrays = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, dtypes, strict=True)]
    run = lambda *arrays: chunked_cross_entropy(*arrays, chunk=64, gradients=True)  # noqa: E731
    program = str(jax.make_jaxpr(run)(*arrays))
    assert "64,1000]" in program and "4096,1000]" not in program


def test_logits_of_more_than_four_gigabytes_are_computed_by_one_gigabyte():
    assert choose_chunk(2**15, 2**15) is None
    assert choose_chunk(2**15 + 1, 2**15) == 2**13
    assert choose_chunk(32 * 1024, 50304) == 4096  # 786 MiB
    assert choose_chunk(2, 2**31) == 1
