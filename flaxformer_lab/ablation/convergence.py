"""Whether a cell trained for long enough: a rule on its validation curves."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats


def is_converged(
    steps: Sequence[int],
    curves: Float[np.ndarray, "seeds evaluations"],
    *,
    higher_is_better: bool,
    tolerance: float,
    noise_tolerance: float,
) -> bool | None:
    """Whether curves are flat at the end: the last quarter of the updates gains next to nothing on the one before.

    The gain is that of the best score in the last quarter of the updates over the best in the quarter before, a mean
    over seeds. It is next to nothing if it is at most `tolerance`, or at most `noise_tolerance` standard deviations of
    the seeds' last scores (by their interquartile range, which a seed that fails does not widen).

    None where one of the two quarters has no evaluation; a curve that ends in NaN is not converged.
    """
    shares, heights = np.asarray(steps) / steps[-1], curves if higher_is_better else -curves
    last, before = shares > 0.75, (shares > 0.5) & (shares <= 0.75)
    if not last.any() or not before.any():
        return None
    if not np.isfinite(curves[:, last | before]).all():
        return False
    gain = np.mean(heights[:, last].max(axis=1) - heights[:, before].max(axis=1))
    noise = stats.iqr(heights[:, -1], scale="normal")
    return bool(gain <= max(tolerance, noise_tolerance * noise))
