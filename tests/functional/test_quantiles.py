import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import QuantileTransformer

from flaxformer_lab.functional.quantiles import fit_quantiles, to_normal

LARGEST = 5.1993


def columns(rows: int) -> np.ndarray:
    """Columns that are skewed, heavy-tailed, of few values, with ties at both ends, and constant."""
    random = np.random.default_rng(0)
    return np.stack(
        [
            random.lognormal(size=rows),
            1e4 * random.standard_cauchy(rows),
            random.integers(0, 5, rows),
            np.clip(random.normal(size=rows), -1, 1),
            np.full(rows, 3.5),
        ],
        axis=1,
    ).astype(np.float32)


def transformed(x, quantiles):
    return np.asarray(to_normal(jnp.asarray(x), jnp.asarray(quantiles)))


@pytest.mark.parametrize("rows", [40, 3000])
def test_equals_scikit_learn_also_on_new_values(rows):
    train, new = (
        columns(rows),
        np.concatenate([columns(rows + 7)[::3] * 1.7, [[1e9] * 5, [-1e9] * 5]]).astype(np.float32),
    )
    reference = QuantileTransformer(n_quantiles=min(1000, rows), output_distribution="normal", subsample=None)
    reference.fit(train.astype(np.float64))
    quantiles = fit_quantiles(train)
    assert quantiles.dtype == np.float32 and quantiles.shape == (min(1000, rows), 5)
    np.testing.assert_allclose(quantiles, reference.quantiles_, rtol=1e-6, atol=1e-6)
    reference.quantiles_ = quantiles.astype(np.float64)  # its rounding parts some values that are equal
    for x in (train, new):
        expected = reference.transform(x.astype(np.float64))
        expected[:, 4][x[:, 4] == 3.5] = 0  # scikit-learn sends a constant to the lowest value
        # Shares agree to float32's rounding; near the ends of a normal distribution that is a larger step.
        np.testing.assert_allclose(transformed(x, quantiles), expected, atol=2e-3)


def test_is_monotone_and_bounded_on_a_fine_grid():
    quantiles = fit_quantiles(columns(500))
    for column in range(5):
        inner = np.linspace(quantiles[0, column], quantiles[-1, column], 997)
        x = np.sort(np.concatenate([inner, quantiles[:, column], [-1e30, 1e30]]).astype(np.float32))
        found = transformed(np.tile(x[:, None], 5), quantiles)[:, column]
        assert np.all(np.diff(found) >= 0) and np.isfinite(found).all()
        assert found[0] == pytest.approx(-LARGEST, abs=1e-3) and found[-1] == pytest.approx(LARGEST, abs=1e-3)


def test_is_symmetric():
    """No share is rounded away near 1: the mirror image of a column has the mirror image of its values."""
    x = columns(700)[:, :2]
    there, mirrored = (transformed(sign * x, fit_quantiles(sign * x)) for sign in (1, -1))
    np.testing.assert_allclose(there, -mirrored, atol=1e-4)


def test_missing_values_are_not_fitted():
    whole = columns(200)
    holes = np.concatenate([whole, np.full((50, 5), np.nan, np.float32)])
    shares = np.linspace(0, 1, 250)
    np.testing.assert_allclose(fit_quantiles(holes), np.quantile(whole, shares, axis=0), rtol=1e-6)
