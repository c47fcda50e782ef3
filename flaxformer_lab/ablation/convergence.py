"""Whether a cell trained for long enough: a rule on its validation curves."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def is_converged(
    steps: Sequence[int],
    curves: Float[np.ndarray, "seeds evaluations"],
    *,
    higher_is_better: bool,
    tolerance: float,
    noise_tolerance: float,
) -> bool | None:
    """Whether curves are flat at the end: the last quarter of the updates gains next to nothing on the one before.

    The gain is the mean score in the last quarter of the updates less that in the quarter before, a mean over seeds:
    means, since the best of several noisy scores grows with their number. It is next to nothing if it is at most
    `tolerance`, or at most `noise_tolerance` of its own standard errors. Their noise is the scatter of each seed's
    scores around a straight line through its last half. So a flat curve is flat however noisy it is, and one that rises
    is not, although its seeds rise by different amounts. A curve that gets worse is flat too.

    None where one of the two quarters has no evaluation; a curve that ends in NaN is not converged.
    """
    shares, heights = np.asarray(steps) / steps[-1], curves if higher_is_better else -curves
    last, before = shares > 0.75, (shares > 0.5) & (shares <= 0.75)
    if not last.any() or not before.any():
        return None
    if not np.isfinite(curves[:, last | before]).all():
        return False
    gain = np.mean(heights[:, last].mean(axis=1) - heights[:, before].mean(axis=1))
    noise = _scatter(shares[last | before], heights[:, last | before])
    error = noise * np.sqrt((1 / last.sum() + 1 / before.sum()) / len(curves))
    return bool(gain <= max(tolerance, noise_tolerance * error))


def _scatter(times: Float[np.ndarray, " times"], values: Float[np.ndarray, "seeds times"]) -> float:
    """The standard deviation around each seed's least-squares line; 0 for two times, which a line always meets."""
    if len(times) < 3:
        return 0.0
    lines = np.stack([np.ones_like(times), times], axis=1)
    residuals = values.T - lines @ np.linalg.lstsq(lines, values.T, rcond=None)[0]
    return float(np.sqrt(np.sum(residuals**2) / (len(values) * (len(times) - 2))))
