"""How far a model sees, against loops, and against what its structure allows."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis.measures import left_out, measure
from flaxformer_lab.analysis.sight import attention_distance, field_radius, field_share, receptive_field, token_places
from flaxformer_lab.errors import MeasureError

MARKS = {"name": "two_marks", "rows": 2, "columns": 6, "distance": 3}
PLACES = [(2 * row + 0.5, 2 * column + 0.5) for row in range(2) for column in range(6)]


def test_tokens_stand_in_the_middle_of_their_patches():
    np.testing.assert_array_equal(token_places(12, 4, 12), PLACES)
    with pytest.raises(ValueError, match="7 tokens are no square patches of 4 x 12"):
        token_places(7, 4, 12)


def test_the_distance_of_attention_is_that_of_the_places_by_their_weights():
    weights = np.random.default_rng(0).dirichlet(np.ones(12), size=(2, 3, 12)).astype(np.float32)
    expected = np.zeros(3)
    for example, head, query, key in np.ndindex(2, 3, 12, 12):
        apart = np.hypot(*np.subtract(PLACES[query], PLACES[key]))
        expected[head] += weights[example, head, query, key] * apart / (2 * 12)
    np.testing.assert_allclose(attention_distance(jnp.asarray(weights), jnp.asarray(PLACES)), expected, rtol=1e-5)


def test_a_field_has_a_radius_and_a_share():
    field = np.zeros((5, 5), np.float32)
    field[2, 2], field[2, 4], field[0, 2], field[0, 0] = 4, 2, 2, 0.1
    expected = (2 * 2 + 2 * 2 + 0.1 * 8**0.5) / 8.1
    assert field_radius(jnp.asarray(field), jnp.array([2.0, 2.0])) == pytest.approx(expected, rel=1e-5)
    assert field_share(jnp.asarray(field)) == pytest.approx(3 / 25)  # 0.1 is less than 4.55% of 4


def test_the_field_is_the_gradient_of_a_token():
    maps = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 1)).astype(np.float32)  # [token, feature, ...]
    function = lambda images: jnp.einsum("brcx,tfrcx->btf", images, maps)  # noqa: E731
    found = receptive_field(function, jnp.ones((1, 4, 4, 1)), 1)
    options = [np.abs(a * maps[1, 0] + b * maps[1, 1])[..., 0] for a, b in itertools.product((-1, 1), repeat=2)]
    assert any(np.allclose(found, each, atol=1e-5) for each in options)


@pytest.mark.slow
def test_a_mean_of_all_tokens_looks_at_the_mean_distance(subject):
    model = subject({"attention.kind": "mean"}, task=MARKS, examples=4)
    found = measure(model, ["sight"])["blocks.0.attention_distance_in_pixels"]
    expected = np.mean([np.hypot(*np.subtract(a, b)) for a in PLACES for b in PLACES])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_convolution_sees_as_far_as_its_windows_and_no_objects_by_attention(subject):
    values = measure(subject(variants=["cnn_2d"], task=MARKS, examples=4), ["sight", "objects"])
    (middle,) = np.argwhere(values["receptive_field"] == values["receptive_field"].max())[:1]
    rows, columns = np.nonzero(values["receptive_field"])
    assert np.ptp(columns) + 1 == 2 * 5 and np.ptp(rows) + 1 == 4 and middle.shape == (2,)  # two patches each way
    assert 0 < values["receptive_radius"][0] < values["receptive_share"].size * 6
    assert values["object_saliency"].shape == (2,) and "object_attention" not in values
    assert not np.array_equal(values["receptive_radius"], values["receptive_radius_at_initialization"])


@pytest.mark.slow
def test_the_gradient_of_the_last_layer_is_that_of_the_mean(subject):
    """Without a norm each token's output weighs the same: nothing is concentrated there, whatever came before."""
    model = subject({"norm.kind": "off"}, task=MARKS, examples=4)
    values = measure(model, ["objects"])
    whole, last = values["object_saliency"]
    assert last == pytest.approx(1, rel=1e-4) and abs(whole - 1) > 1e-3
    assert values["object_attention"].shape == values["object_attention_at_initialization"].shape == (1,)


def test_what_has_no_images_or_no_objects_is_left_out(subject):
    reasons = left_out(subject())
    assert reasons["sight"] == "its inputs are no images" and "where objects are" in reasons["objects"]
    with pytest.raises(MeasureError, match="sight does not apply to this model"):
        measure(subject(), ["sight"])


def test_a_body_that_halves_its_tokens_has_no_mixing_of_equal_ones(subject):
    model = subject(variants=["resnet"], task=MARKS, examples=4)
    reasons = left_out(model)
    assert "its body turns (12, 8) tokens and features into (3, 16)" in reasons["mixing"]
    assert reasons["mixing"] == reasons["symmetry"] == reasons["mixing_at_initialization"]
