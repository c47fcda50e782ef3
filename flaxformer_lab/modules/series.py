"""Between windows of a time series and token vectors: instance normalisation, tokens, and the head that forecasts.

A layout says what a token is. `channels=independent` reads each channel as an example of its own, with the same weights
(Nie et al. 2023): the embedding then returns [batch * channels, tokens, width], and the head brings the channels back.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional.decomposition import decompose_series
from flaxformer_lab.functional.linear import add_bias
from flaxformer_lab.functional.series import instance_statistics, num_patches, series_patches
from flaxformer_lab.functional.structured import block_matmul
from flaxformer_lab.modules.distilling import CircularConvolution
from flaxformer_lab.modules.projection import PROJECTIONS, Dense, normal, ones, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read

Inputs = dict[str, Array]  # series and observed [batch, lookback, channels], marks [batch, lookback + horizon, marks]
Series = Float[Array, "batch steps channels"]
Forecasts = Float[Array, "batch horizon targets *quantiles"]
EPSILON = 1e-5  # of the instance's variance, as in RevIN and PatchTST


@dataclass(frozen=True)
class Layout:
    """How a window becomes tokens.

    kind: `patch` (a patch of one step is a step) or `variate`. channels: of the series; targets: those that are
    forecast. marks: features of the calendar that tokens have; 0 for none. kernel_sizes: of the moving averages that
    part every channel into season and trend, two numbers a step; () for one.
    """

    kind: Literal["patch", "variate"]
    independent: bool
    lookback: int
    channels: int
    targets: tuple[int, ...]
    marks: int = 0
    patch_length: int = 1
    patch_stride: int = 1
    padded: bool = False
    kernel_sizes: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of one sequence."""
        if self.kind == "variate":
            return (1 if self.independent else self.channels) + self.marks
        return num_patches(self.lookback, self.patch_length, self.patch_stride, padded=self.padded)

    @property
    def features(self) -> int:
        """Numbers of one token."""
        parts = 2 if self.kernel_sizes else 1
        if self.kind == "variate":
            return parts * self.lookback
        return parts * self.patch_length * ((1 if self.independent else self.channels) + self.marks)


class InstanceNorm(nnx.Module):
    """Takes the level, and for RevIN the spread, from each window and channel, and gives it back to the forecast.

    kind: `off`; `last` subtracts the last value (NLinear, Zeng et al. 2023); `revin` standardises (Kim et al. 2022);
    `affine` is RevIN with a scale and a shift for each channel.
    """

    def __init__(self, kind: str, channels: int):
        self._kind = kind
        self.scale = ones((channels,), (None,)) if kind == "affine" else None
        self.shift = zeros((channels,), (None,)) if kind == "affine" else None

    def _level_and_spread(self, inputs: Inputs) -> tuple[Series, Series]:
        series = inputs["series"].astype(jnp.float32)
        if self._kind == "last":
            return series[:, -1:], jnp.ones_like(series[:, -1:])
        return instance_statistics(series, inputs["observed"], EPSILON)

    def __call__(self, inputs: Inputs) -> Series:
        series = inputs["series"].astype(jnp.float32)
        if self._kind == "off":
            return series
        level, spread = self._level_and_spread(inputs)
        series = (series - level) / spread
        return series if self.scale is None else series * read(self.scale)[None, None] + read(self.shift)[None, None]

    def inverse(self, forecasts: Forecasts, inputs: Inputs, targets: tuple[int, ...]) -> Forecasts:
        """Forecasts of the channels `targets` in the units of the inputs."""
        if self._kind == "off":
            return forecasts
        chosen = np.array(targets)
        shape = (..., chosen, *[None] * (forecasts.ndim - 3))
        level, spread = (each[shape] for each in self._level_and_spread(inputs))
        if self.scale is not None:
            scale, shift = (read(each)[None, None][shape] for each in (self.scale, self.shift))
            forecasts = (forecasts - shift) / (scale + EPSILON**2)  # as in the authors' code: a scale may reach 0
        return forecasts * spread + level


class StepEmbedding(nnx.Module):
    """A circular convolution of the series plus a linear map of the calendar, without biases (Zhou et al. 2021)."""

    def __init__(self, channels: int, marks: int, width: int, *, rngs: Rngs):
        self.values = CircularConvolution(channels, width, bias=False, rngs=rngs)
        self.calendar = Dense(marks, width, axes=(None, "width"), bias=False, rngs=rngs) if marks else None

    def __call__(self, series: Series, marks: Float[Array, "batch steps marks"]) -> Float[Array, "batch steps width"]:
        return self.values(series) if self.calendar is None else self.values(series) + self.calendar(marks)


def by_channel(
    series: Series, marks: Float[Array, "batch steps marks"], targets: tuple[int, ...]
) -> tuple[Float[Array, "sequences steps 1"], Float[Array, "sequences steps marks"]]:
    """The channels `targets` one after another, [batch * targets, steps, 1], and the marks for each."""
    series, number = jnp.swapaxes(series[..., np.array(targets)], 1, 2), len(targets)
    batch, steps = marks.shape[:2]
    marks = jnp.broadcast_to(marks[:, None], (batch, number, *marks.shape[1:]))
    return series.reshape(batch * number, steps, 1), marks.reshape(batch * number, *marks.shape[2:])


class SeriesEmbedding(nnx.Module):
    """Windows to token vectors; marks of the calendar are more features of a patch, or more tokens beside variates.

    kind: of a map of each token's numbers, or `circular`: a step and its two neighbours.
    """

    def __init__(
        self, layout: Layout, kind: str, width: int, *, norm: InstanceNorm, bias: bool, dtype: str, rngs: Rngs
    ):
        self._layout, self._dtype, self._circular = layout, jnp.dtype(dtype), kind == "circular"
        self.norm = norm
        if self._circular:
            self.projection = StepEmbedding(
                1 if layout.independent else layout.channels, layout.marks, width, rngs=rngs
            )
        else:
            self.projection = PROJECTIONS[kind](layout.features, width, axes=(None, "width"), bias=bias, rngs=rngs)

    def __call__(self, inputs: Inputs) -> Float[Array, "sequences tokens width"]:
        layout, series = self._layout, self.norm(inputs)
        marks = inputs["marks"][:, : layout.lookback, : layout.marks].astype(jnp.float32)
        if layout.independent:
            series, marks = by_channel(series, marks, layout.targets)
        if self._circular:
            return self.projection(series.astype(self._dtype), marks.astype(self._dtype))
        rows = jnp.concatenate([series, marks], axis=-1)
        parts = decompose_series(rows, layout.kernel_sizes) if layout.kernel_sizes else (rows,)
        if layout.kind == "variate":
            tokens = jnp.swapaxes(jnp.concatenate(parts, axis=1), 1, 2)
        else:
            rows = jnp.concatenate(parts, axis=2)
            tokens = series_patches(rows, layout.patch_length, layout.patch_stride, padded=layout.padded)
        return self.projection(tokens.astype(self._dtype))


class IndividualDense(nnx.Module):
    """x W + b with weights of its own for each channel."""

    def __init__(self, channels: int, features_in: int, features_out: int, *, bias: bool, rngs: Rngs):
        self.kernel = normal(rngs, (channels, features_in, features_out), features_in, (None, "width", None))
        self.bias = zeros((channels, features_out), (None, None)) if bias else None

    def __call__(self, x: Float[Array, "batch channels features_in"]) -> Float[Array, "batch channels features_out"]:
        return add_bias(block_matmul(x, read(self.kernel)), read(self.bias))


class ForecastHead(nnx.Module):
    """Token vectors to forecasts [batch, horizon, targets], in the units of the inputs.

    quantiles: so many of each value, on one more axis; None forecasts one number.
    pooling: of the tokens of a sequence: `flat` (side by side), `mean` or `last`; the token of a variate stands for
    itself. individual: a map of its own for each channel; else one for all.
    """

    reads_inputs = True

    def __init__(
        self,
        layout: Layout,
        pooling: str,
        width: int,
        horizon: int,
        *,
        individual: bool,
        quantiles: int | None = None,
        norm: InstanceNorm,
        bias: bool,
        rngs: Rngs,
    ):
        self._layout, self._pooling, self.norm = layout, pooling, norm
        self._shape = (horizon,) if quantiles is None else (horizon, quantiles)
        numbers = math.prod(self._shape)  # of one channel
        variates, targets = layout.kind == "variate", len(layout.targets)
        self._features = features = width * (layout.tokens if pooling == "flat" and not variates else 1)
        self._by_channel = variates or layout.independent
        if individual:
            self.map = IndividualDense(targets, features, numbers, bias=bias, rngs=rngs)
        else:
            outputs = numbers * (1 if self._by_channel else targets)
            self.map = Dense(features, outputs, axes=("width", None), bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "sequences tokens width"], inputs: Inputs) -> Forecasts:
        layout, batch = self._layout, inputs["series"].shape[0]
        if layout.kind == "variate":
            x = x[:, :1] if layout.independent else x[:, np.array(layout.targets)]
        else:
            x = self._pooled(x)
        if self._by_channel:
            x = x.reshape(batch, len(layout.targets), self._features)
        y = self.map(x).reshape(batch, len(layout.targets), *self._shape).astype(jnp.float32)
        return self.norm.inverse(jnp.swapaxes(y, 1, 2), inputs, layout.targets)

    def _pooled(self, x: Float[Array, "sequences tokens width"]) -> Float[Array, "sequences features"]:
        if self._pooling == "mean":
            return jnp.mean(x, axis=1)
        return x[:, -1] if self._pooling == "last" else x.reshape(x.shape[0], self._features)
