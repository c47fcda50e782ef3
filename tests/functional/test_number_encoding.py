import jax.numpy as jnp
import numpy as np

from flaxformer_lab.functional.number_encoding import periodic, piecewise_linear


def naive_bins(x, edges):
    """Gorishniy et al. 2022, eq. 1, bin by bin; a bin without width is a step."""
    found, last = [], len(edges) - 2
    for number in range(len(edges) - 1):
        low, high = edges[number], edges[number + 1]
        if high == low:
            found.append(float(x >= low))
        elif x < low and number > 0:
            found.append(0.0)
        elif x >= high and number < last:
            found.append(1.0)
        else:
            found.append((x - low) / (high - low))
    return found


def test_bins_are_those_of_the_paper():
    edges = np.array([[-1.0, 0.0, 0.5, 3.0], [0.0, 0.0, 2.0, 2.0]])
    x = np.array([[-2.0, -1.0], [-0.5, 0.0], [0.0, 1.0], [0.4, 2.0], [2.9, 2.5], [7.0, 0.5]])
    expected = [[naive_bins(value, of_column) for value, of_column in zip(row, edges, strict=True)] for row in x]
    np.testing.assert_allclose(piecewise_linear(jnp.asarray(x), jnp.asarray(edges)), expected, atol=1e-6)


def test_a_monotone_map_of_column_and_edges_changes_no_whole_bin():
    edges = np.array([[0.0, 1.0, 2.0, 5.0]])
    x = np.array([[0.0], [1.0], [2.0], [5.0]])
    cubed = piecewise_linear(jnp.asarray(x**3), jnp.asarray(edges**3))
    np.testing.assert_array_equal(piecewise_linear(jnp.asarray(x), jnp.asarray(edges)), cubed)


def test_waves_have_the_frequencies():
    x, frequencies = np.array([[0.25, 1.0], [-0.5, 0.1]]), np.array([[1.0, 0.5], [2.0, 0.25]])
    found = periodic(jnp.asarray(x), jnp.asarray(frequencies))
    assert found.shape == (2, 2, 4)
    phases = 2 * np.pi * x[:, :, None] * frequencies[None]
    np.testing.assert_allclose(found, np.concatenate([np.sin(phases), np.cos(phases)], axis=2), atol=1e-5)
