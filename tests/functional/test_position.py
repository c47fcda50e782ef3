"""Positions against their papers' formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.position import rotary, sinusoidal, sinusoidal_2d


def test_sinusoidal_follows_its_formula():
    tokens, width = 7, 6
    table = sinusoidal(tokens, width)
    expected = np.zeros((tokens, width))
    for token in range(tokens):
        for pair in range(width // 2):
            angle = token / 10000 ** (2 * pair / width)
            expected[token, pair], expected[token, width // 2 + pair] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-5)


def test_rotary_turns_pairs_of_features_as_complex_numbers():
    batch, tokens, heads, head_dim = 2, 5, 3, 4
    x = np.random.default_rng(0).normal(size=(batch, tokens, heads, head_dim))
    result = np.asarray(rotary(jnp.asarray(x, jnp.float32)))
    for token in range(tokens):
        for pair in range(head_dim // 2):
            number = x[:, token, :, pair] + 1j * x[:, token, :, pair + head_dim // 2]
            number = number * np.exp(1j * token / 10000 ** (2 * pair / head_dim))
            np.testing.assert_allclose(result[:, token, :, pair], number.real, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(result[:, token, :, pair + head_dim // 2], number.imag, rtol=1e-5, atol=1e-5)


def test_rotary_scores_depend_on_distance_alone():
    tokens, generator = 9, np.random.default_rng(1)
    query, key = (np.broadcast_to(generator.normal(size=8), (1, tokens, 1, 8)) for _ in range(2))
    query, key = (np.asarray(rotary(jnp.asarray(x, jnp.float32)))[0, :, 0] for x in (query, key))
    scores = query @ key.T
    for distance in range(-tokens + 1, tokens):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)
    assert np.ptp(scores[0]) > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotary_keeps_the_dtype(dtype):
    assert rotary(jnp.ones((1, 2, 1, 4), dtype)).dtype == dtype


def test_rotary_of_some_features_with_another_base():
    x = np.random.default_rng(2).normal(size=(1, 5, 2, 10)).astype(np.float32)
    result = np.asarray(rotary(jnp.asarray(x), base=50.0, features=4))
    np.testing.assert_array_equal(result[..., 4:], x[..., 4:])
    for pair in range(2):
        number = (x[..., pair] + 1j * x[..., pair + 2]) * np.exp(1j * np.arange(5)[None, :, None] / 50 ** (pair / 2))
        np.testing.assert_allclose(result[..., pair], number.real, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result[..., pair + 2], number.imag, rtol=1e-5, atol=1e-5)


def test_a_place_on_a_grid_is_its_row_beside_its_column():
    table = sinusoidal_2d(2, 3, 8)
    assert table.shape == (6, 8)
    for number in range(6):
        row, column = divmod(number, 3)
        expected = np.concatenate([sinusoidal(2, 4)[row], sinusoidal(3, 4)[column]])
        np.testing.assert_allclose(table[number], expected, rtol=1e-6)
