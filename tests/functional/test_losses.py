"""Losses against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error, r2_score

from flaxformer_lab.functional.losses import accuracy, cross_entropy, explained_variance, squared_error

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(scale=2, size=(20, 5))
TARGETS = GENERATOR.integers(0, 5, 20)
WEIGHTS = GENERATOR.integers(0, 3, 20) / 2.0
ARGUMENTS = (jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGETS), jnp.asarray(WEIGHTS, jnp.float32))


def test_cross_entropy_agrees_with_log_loss():
    total, weight = jax.jit(cross_entropy)(*ARGUMENTS)
    expected = log_loss(TARGETS, softmax(LOGITS, axis=-1), sample_weight=WEIGHTS, labels=range(5))
    assert float(weight) == WEIGHTS.sum()
    assert float(total) / WEIGHTS.sum() == pytest.approx(expected, rel=1e-5)


def test_accuracy_agrees_with_accuracy_score():
    total, weight = jax.jit(accuracy)(*ARGUMENTS)
    expected = accuracy_score(TARGETS, LOGITS.argmax(axis=-1), sample_weight=WEIGHTS)
    assert 0 < expected < 1
    assert float(weight) == WEIGHTS.sum()
    assert float(total) / WEIGHTS.sum() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("measure", [cross_entropy, accuracy])
def test_parts_of_a_batch_add_up_to_the_whole(measure):
    measure = jax.jit(measure)
    whole = [float(value) for value in measure(*ARGUMENTS)]
    parts = [measure(*(jnp.asarray(np.asarray(x)[rows]) for x in ARGUMENTS)) for rows in (slice(10), slice(10, 20))]
    np.testing.assert_allclose(np.asarray(parts).sum(axis=0), whole, rtol=1e-6)


@pytest.mark.parametrize("measure", [cross_entropy, accuracy])
def test_tokens_of_an_example_count_one_by_one(measure):
    shapes = ((4, 5, 5), (4, 5), (4, 5))
    in_sequences = (jnp.asarray(np.asarray(x).reshape(shape)) for x, shape in zip(ARGUMENTS, shapes, strict=True))
    measure = jax.jit(measure)
    np.testing.assert_allclose(measure(*in_sequences), measure(*ARGUMENTS), rtol=1e-6)


def test_gradient_of_cross_entropy_is_softmax_minus_target():
    gradient = jax.jit(jax.grad(lambda logits: cross_entropy(logits, *ARGUMENTS[1:])[0]))(ARGUMENTS[0])
    expected = (softmax(LOGITS, axis=-1) - np.eye(5)[TARGETS]) * WEIGHTS[:, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_huge_logits_stay_finite():
    total, _ = cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]), jnp.ones(1))
    assert float(total) == pytest.approx(2e4)


def test_half_precision_logits_are_summed_in_float32():
    total, _ = cross_entropy(jnp.zeros((512, 3), jnp.bfloat16), jnp.zeros(512, int), jnp.ones(512))
    assert total.dtype == jnp.float32
    assert float(total) == pytest.approx(512 * np.log(3), rel=1e-5)


# ------------------------------------------------------------------------------------------- continuous targets

OUTPUTS, VALUES = GENERATOR.normal(size=(2, 20, 3))
VALUES = VALUES - np.average(VALUES, axis=0, weights=WEIGHTS)
VECTORS = (*(jnp.asarray(x, jnp.float32) for x in (OUTPUTS, VALUES)), ARGUMENTS[2])


def test_squared_error_agrees_with_mean_squared_error():
    total, weight = jax.jit(lambda *x: squared_error(*x, variance=2.5))(*VECTORS)
    expected = mean_squared_error(VALUES, OUTPUTS, sample_weight=WEIGHTS) / 2.5
    assert float(weight) == WEIGHTS.sum()
    assert float(total) / WEIGHTS.sum() == pytest.approx(expected, rel=1e-5)


def test_squared_error_is_1_for_the_mean_of_targets_of_that_variance():
    values = jnp.array([[3.0], [-3.0]])
    assert [float(x) for x in squared_error(jnp.zeros((2, 1)), values, jnp.ones(2), variance=9.0)] == [2, 2]


def test_explained_variance_agrees_with_r2_score():
    total, weight = jax.jit(explained_variance)(*VECTORS)
    expected = r2_score(VALUES, OUTPUTS, sample_weight=WEIGHTS, multioutput="variance_weighted")
    assert float(total) / float(weight) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "measure", [lambda *x: squared_error(*x, variance=2.0), explained_variance], ids=["error", "explained"]
)
def test_vectors_add_up_and_count_one_by_one(measure):
    measure = jax.jit(measure)
    whole = [float(value) for value in measure(*VECTORS)]
    parts = [measure(*(jnp.asarray(np.asarray(x)[rows]) for x in VECTORS)) for rows in (slice(7), slice(7, 20))]
    np.testing.assert_allclose(np.asarray(parts).sum(axis=0), whole, rtol=1e-5)
    shapes = ((4, 5, 3), (4, 5, 3), (4, 5))
    in_sequences = (jnp.asarray(np.asarray(x).reshape(shape)) for x, shape in zip(VECTORS, shapes, strict=True))
    np.testing.assert_allclose(measure(*in_sequences), whole, rtol=1e-5)
    half = measure(VECTORS[0].astype(jnp.bfloat16), *VECTORS[1:])
    assert half[0].dtype == jnp.float32
    assert float(half[0]) == pytest.approx(whole[0], rel=2e-2)


@pytest.mark.parametrize("target", [-1, -100, 5, 255])
def test_a_target_that_is_no_class_has_no_loss(target):
    """Its loss would be logsumexp, which has no floor: NaN, which ends a run. Without a weight it does not matter."""
    targets = ARGUMENTS[1].at[3].set(target)
    weighted, ignored = (ARGUMENTS[2].at[3].set(weight) for weight in (1.0, 0.0))
    assert np.isnan(cross_entropy(ARGUMENTS[0], targets, weighted)[0])
    expected = log_loss(TARGETS, softmax(LOGITS, axis=-1), sample_weight=np.asarray(ignored), labels=range(5))
    total, weight = cross_entropy(ARGUMENTS[0], targets, ignored)
    assert float(total / weight) == pytest.approx(expected, rel=1e-5)
    gradient = jax.grad(lambda logits: cross_entropy(logits, targets, ignored)[0])(ARGUMENTS[0])
    assert np.all(np.isfinite(gradient)) and not np.asarray(gradient[3]).any()


def test_targets_of_a_small_type_have_more_classes_than_it_can_count():
    logits = GENERATOR.normal(size=(9, 300))
    targets = np.arange(9, dtype=np.uint8)
    total, _ = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets), jnp.ones(9))
    assert float(total) == pytest.approx(-log_softmax(logits, axis=-1)[range(9), range(9)].sum(), rel=1e-5)


def test_float16_targets_are_squared_in_float32():
    outputs, targets = jnp.full((3, 2), 400, jnp.float16), jnp.full((3, 2), 1000, jnp.float16)
    assert float(squared_error(outputs, targets, jnp.ones(3), variance=1.0).compute()) == 600**2
    assert float(explained_variance(outputs, targets, jnp.ones(3)).compute()) == pytest.approx(1 - 0.36)
