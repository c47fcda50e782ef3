"""Forecasts from a decoder: what it is given, and what its token vectors become (Zhou et al. 2021, Wu et al. 2021).

The decoder's tokens are the last `label_length` steps of the window, and `horizon` steps to be filled in. Inputs are
as in `series.py`.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.modules.decomposition import Decomposition
from flaxformer_lab.modules.distilling import CircularConvolution
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.series import Forecasts, Inputs, InstanceNorm, StepEmbedding

Series = Float[Array, "batch steps channels"]


class SourceTargetEmbedding(nnx.Module):
    """The window for the encoder; for the decoder its last steps, and zeros for the horizon.

    moving_average: the decoder is given the seasonal part of the window instead (Autoformer), of averages of so many
    steps; none means the window itself (Informer).
    """

    def __init__(
        self,
        channels: int,
        marks: int,
        width: int,
        *,
        label_length: int,
        horizon: int,
        norm: InstanceNorm,
        moving_average: tuple[int, ...] = (),
        dtype: str = "float32",
        rngs: Rngs,
    ):
        self._label_length, self._horizon, self._dtype = label_length, horizon, jnp.dtype(dtype)
        self._marks, self.norm = marks, norm
        self.decomposition = Decomposition(moving_average, rngs) if moving_average else None
        self.source, self.target = (StepEmbedding(channels, marks, width, rngs=rngs) for _ in range(2))

    def __call__(self, inputs: Inputs) -> dict[str, Float[Array, "batch _ width"]]:
        """Token vectors of `source` and `target`."""
        series, marks = self.norm(inputs).astype(self._dtype), inputs["marks"][..., : self._marks].astype(self._dtype)
        known = series if self.decomposition is None else self.decomposition(series)[0]
        known = known[:, known.shape[1] - self._label_length :]
        target = jnp.pad(known, ((0, 0), (0, self._horizon), (0, 0)))
        lookback = series.shape[1]
        return {
            "source": self.source(series, marks[:, :lookback]),
            "target": self.target(target, marks[:, lookback - self._label_length : lookback + self._horizon]),
        }


class DecoderHead(nnx.Module):
    """A linear map of the decoder's last `horizon` tokens to the channels `targets`, in the units of the inputs.

    quantiles: so many of each value, on one more axis; None forecasts one number.
    """

    reads_inputs = True

    def __init__(
        self,
        width: int,
        targets: tuple[int, ...],
        *,
        horizon: int,
        quantiles: int | None = None,
        bias: bool = True,
        norm: InstanceNorm,
        rngs: Rngs,
    ):
        self._targets, self._horizon, self._quantiles, self.norm = targets, horizon, quantiles, norm
        self.map = Dense(width, len(targets) * (quantiles or 1), axes=("width", None), bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch target width"], inputs: Inputs) -> Forecasts:
        return self.norm.inverse(self._values(x).astype(jnp.float32), inputs, self._targets)

    def _values(self, x: Float[Array, "batch target width"]) -> Forecasts:
        y = self.map(self._last(x))
        return y if self._quantiles is None else y.reshape(*y.shape[:2], len(self._targets), self._quantiles)

    def _last(self, x: Float[Array, "batch target features"]) -> Float[Array, "batch horizon features"]:
        return x[:, x.shape[1] - self._horizon :]


class TrendHead(DecoderHead):
    """The seasonal part as channels, plus the trend (Wu et al. 2021, eq. 4 and algorithm 1).

    The trend of the horizon starts as the window's mean; a circular convolution of what each block took away is added.
    """

    def __init__(self, width: int, targets: tuple[int, ...], *, blocks: int, rngs: Rngs, **options):
        super().__init__(width, targets, rngs=rngs, **options)
        convolution = lambda: CircularConvolution(width, len(targets), bias=False, rngs=rngs)  # noqa: E731
        self.trends = nnx.List([convolution() for _ in range(blocks)])

    def __call__(self, x: Mapping[str, Array], inputs: Inputs) -> Forecasts:
        """x: the output of `Autoformer`."""
        mean = jnp.mean(self.norm(inputs)[..., np.array(self._targets)], axis=1, keepdims=True)
        none = jnp.zeros((*x["seasonal"].shape[:2], len(self._targets)), x["seasonal"].dtype)  # without any block
        moved = sum((convolution(x["trends"][:, :, block]) for block, convolution in enumerate(self.trends)), none)
        trend = self._last(moved).astype(jnp.float32) + mean
        values = self._values(x["seasonal"]).astype(jnp.float32)
        values = values + trend.reshape(*trend.shape, *[1] * (values.ndim - 3))  # the trend of all quantiles
        return self.norm.inverse(values, inputs, self._targets)
