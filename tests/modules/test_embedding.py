"""Embeddings against naive loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.models.pretrained.heads import DistilledEmbedding
from flaxformer_lab.modules.embedding import FeatureEmbedding, PatchEmbedding, TokenEmbedding, patches
from flaxformer_lab.modules.rngs import AbstractRngs, Rngs

IMAGES = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)


def cut(images, size):
    """Patches row by row; the features of one run row, column, channel."""
    batch, rows, columns, _ = images.shape
    grid = [(r, c) for r in range(0, rows, size) for c in range(0, columns, size)]
    return np.stack([[image[r : r + size, c : c + size].ravel() for r, c in grid] for image in images])


@pytest.mark.parametrize("size", [1, 2])
def test_patches_are_cut_row_by_row(size):
    np.testing.assert_array_equal(patches(jnp.asarray(IMAGES), size), cut(IMAGES, size))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
def test_patch_embedding(bias, class_token):
    options = {"bias": bias, "class_token": class_token, "dtype": "float32", "rngs": Rngs(0)}
    embedding = PatchEmbedding(2, 3, 5, **options)
    expected = cut(IMAGES, 2).astype(np.float64) @ np.asarray(embedding.projection.kernel[...], np.float64)
    if bias:
        embedding.projection.bias[...] = jnp.arange(5.0)
        expected += np.arange(5)
    tokens = np.asarray(embedding(jnp.asarray(IMAGES)))
    if class_token:
        first, tokens = tokens[:, 0], tokens[:, 1:]
        np.testing.assert_array_equal(first, np.stack([embedding.class_token[...]] * 2))
    np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=1e-5)


def test_token_embedding_is_the_row_of_each_symbol():
    embedding = TokenEmbedding(7, 5, dtype="float32", rngs=Rngs(0))
    table = np.asarray(embedding.table[...])
    symbols = np.array([[0, 6, 3], [3, 3, 1]])
    expected = np.eye(7)[symbols] @ table
    np.testing.assert_allclose(embedding(jnp.asarray(symbols)), expected, rtol=1e-6)
    assert len(np.unique(table, axis=0)) == 7


def test_gradients_of_class_and_distillation_tokens_are_float32_sums():
    """A sum of 1,001 ones in bfloat16 is 256, and none of its numbers is 1,001."""
    embedding = DistilledEmbedding(2, 1, 4, bias=False, class_token=True, dtype="bfloat16", rngs=Rngs(0))
    graph, params = nnx.split(embedding)
    total = lambda params, images: jnp.sum(nnx.merge(graph, params)(images).astype(jnp.float32))  # noqa: E731
    gradient = jax.jit(jax.grad(total))(params, jnp.zeros((1001, 2, 2, 1)))
    for name in ("class_token", "distillation_token"):
        np.testing.assert_array_equal(gradient[name][...], 1001)


@pytest.mark.parametrize("bias", [True, False])
def test_dense_feature_embedding(draw_module, bias):
    options = {"bias": bias, "dtype": "float32"}
    drawn = draw_module(lambda: FeatureEmbedding("dense", 3, 5, **options, rngs=AbstractRngs()))
    x, exact = IMAGES[0], drawn.exact
    assert set(exact) == ({"projection.kernel", "projection.bias"} if bias else {"projection.kernel"})
    expected = x.astype(np.float64) @ exact["projection.kernel"] + exact.get("projection.bias", 0)
    np.testing.assert_allclose(drawn(x), expected, rtol=1e-5, atol=1e-5)


def test_identity_feature_embedding_leaves_vectors_as_they_are(draw_module):
    drawn = draw_module(lambda: FeatureEmbedding("identity", 3, 3, bias=True, dtype="float32", rngs=AbstractRngs()))
    assert drawn.exact == {}
    np.testing.assert_array_equal(drawn(IMAGES[0]), IMAGES[0])


def test_vectors_are_of_the_dtype_asked_for_and_parameters_stay_float32():
    tokens = TokenEmbedding(7, 5, dtype="bfloat16", rngs=Rngs(0))
    image = PatchEmbedding(2, 3, 5, bias=True, class_token=True, dtype="bfloat16", rngs=Rngs(0))
    vectors = FeatureEmbedding("dense", 3, 5, bias=True, dtype="bfloat16", rngs=Rngs(0))
    of_tokens, of_image = jax.eval_shape(tokens, jnp.zeros((1, 2), int)), jax.eval_shape(image, IMAGES)
    assert of_tokens.dtype == of_image.dtype == jax.eval_shape(vectors, IMAGES[0]).dtype == jnp.bfloat16
    assert vectors.projection.kernel.dtype == jnp.float32
    assert tokens.table.dtype == image.projection.kernel.dtype == image.class_token.dtype == jnp.float32
