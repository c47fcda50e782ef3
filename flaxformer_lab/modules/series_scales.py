"""A window at several scales, and the forecast from all of them (TimeMixer, Wang et al. 2024).

Scale 0 is the window itself; each other one has the means of two steps of the one before. Channels go by themselves.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional.series import average_pairs
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.series import Forecasts, Inputs, InstanceNorm, Layout, StepEmbedding, by_channel

Scales = dict[str, Float[Array, "sequences _ width"]]  # by the number of the scale


class ScaleEmbedding(nnx.Module):
    """Windows to the token vectors of each scale, by one map for all.

    norms: of each scale, of its own mean and deviation. Marks of the calendar are those of the first of the steps that
    are averaged.
    """

    def __init__(self, layout: Layout, width: int, *, norms: Sequence[InstanceNorm], dtype: str, rngs: Rngs):
        self._layout, self._dtype, self.norms = layout, jnp.dtype(dtype), nnx.List(norms)
        self.steps = StepEmbedding(1, layout.marks, width, rngs=rngs)

    def __call__(self, inputs: Inputs) -> Scales:
        layout, series = self._layout, inputs["series"].astype(jnp.float32)
        observed, tokens = inputs["observed"].astype(jnp.float32), {}
        marks = inputs["marks"][:, : layout.lookback, : layout.marks]
        for scale, norm in enumerate(self.norms):
            if scale:
                series, observed = average_pairs(series), average_pairs(observed)
                marks = marks[:, : 2 * series.shape[1] : 2]
            normed = norm({"series": series, "observed": observed > 0})
            parts = by_channel(normed, marks, layout.targets)
            tokens[str(scale)] = self.steps(*(part.astype(self._dtype) for part in parts))
        return tokens


class ScaleHead(nnx.Module):
    """The sum of the forecasts from each scale: a map from its steps to the horizon, then one of features for all.

    quantiles: so many of each value, on one more axis; None forecasts one number.
    """

    reads_inputs = True

    def __init__(
        self,
        steps: Sequence[int],
        width: int,
        targets: tuple[int, ...],
        horizon: int,
        *,
        quantiles: int | None = None,
        norm: InstanceNorm,
        bias: bool,
        rngs: Rngs,
    ):
        self._targets, self._quantiles, self.norm = targets, quantiles, norm
        self.times = nnx.List([Dense(number, horizon, axes=(None, None), bias=bias, rngs=rngs) for number in steps])
        self.map = Dense(width, quantiles or 1, axes=("width", None), bias=bias, rngs=rngs)

    def __call__(self, x: Scales, inputs: Inputs) -> Forecasts:
        ahead = (time(jnp.swapaxes(tokens, 1, 2)) for time, tokens in zip(self.times, x.values(), strict=True))
        y = sum(self.map(jnp.swapaxes(each, 1, 2)) for each in ahead).astype(jnp.float32)
        y = y.reshape(-1, len(self._targets), *y.shape[1:])
        y = jnp.swapaxes(y if self._quantiles else y[..., 0], 1, 2)
        return self.norm.inverse(y, inputs, self._targets)
