import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis.objects import attention_received, concentration, covered_tokens, saliency

OBJECTS = np.zeros((2, 4, 6), np.float32)
OBJECTS[0, :2, :2] = 1  # a whole patch of 2 x 2
OBJECTS[1, 1, 2:6] = 1  # half of two patches


def test_what_is_spread_evenly_is_concentrated_by_the_area_alone():
    assert concentration(jnp.full((2, 4, 6), 3.0), jnp.asarray(OBJECTS)) == pytest.approx(1)


def test_all_of_it_in_the_objects_is_the_inverse_of_their_area():
    expected = np.mean([24 / 4, 24 / 4])
    assert concentration(jnp.asarray(OBJECTS), jnp.asarray(OBJECTS)) == pytest.approx(expected)


def test_examples_without_objects_or_without_anything_shown_do_not_count():
    shown = jnp.asarray(OBJECTS).at[1].set(0)
    assert concentration(shown, jnp.asarray(OBJECTS)) == pytest.approx(6)
    assert concentration(jnp.ones((2, 4, 6)), jnp.asarray(OBJECTS).at[0].set(0)) == pytest.approx(1)


def test_tokens_are_covered_as_their_patches_are():
    found = covered_tokens(jnp.asarray(OBJECTS), 6)
    np.testing.assert_allclose(found, [[1, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0]])
    with pytest.raises(ValueError, match="5 tokens are no square patches"):
        covered_tokens(jnp.asarray(OBJECTS), 5)


def test_what_a_token_receives_is_the_mean_over_queries_and_heads():
    weights = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3, 5)).astype(np.float32)
    expected = [[np.mean([w[h][q][k] for h in range(3) for q in range(5)]) for k in range(5)] for w in weights]
    np.testing.assert_allclose(attention_received(jnp.asarray(weights)), expected, rtol=1e-5)


def test_the_saliency_is_the_gradient_of_the_largest_logit():
    x = jnp.array([[[1.0, -2.0], [0.5, 3.0]], [[-1.0, 2.0], [-4.0, 1.0]]])
    weights = jnp.array([[[1.0, -1.0], [0.0, 2.0]], [[0.5, 0.5], [-3.0, 1.0]]])  # [class, place, channel]
    apply = lambda x: jnp.einsum("bpc,kpc->bk", x, weights)  # noqa: E731
    largest = np.argmax(np.asarray(apply(x)), axis=1)
    np.testing.assert_allclose(saliency(apply, x), np.abs(np.asarray(weights)[largest]).sum(axis=-1))
    assert set(largest) == {0, 1}
