"""Convolutions over images, [batch, rows, columns, features]."""

import itertools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional.convolution import (
    convolution_1d,
    convolution_2d,
    depthwise_2d,
    max_pool_2d,
    neighbourhood_1d,
    neighbourhood_2d,
)
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.functional.linear import add_bias
from flaxformer_lab.functional.platform import in_portable_forms
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.modules.norm import BatchNorm, LayerNorm, NormKnobs
from flaxformer_lab.modules.projection import Dense, normal, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read

Image = Float[Array, "batch rows columns features"]
Convolved = Float[Array, "batch rows_out columns_out features_out"]


def map_windows_1d(
    dense: Dense, x: Float[Array, "batch tokens features"], kernel_size: int, *, causal: bool, **options: Any
) -> Float[Array, "batch tokens features_out"]:
    """A dense map of each token's neighbours. options: `dilation` and `circular`, as `neighbourhood_1d` has them."""
    if in_portable_forms():
        made = convolution_1d(x, read(dense.kernel), kernel_size, causal=causal, **options)
        return add_bias(made, read(dense.bias))
    return dense(neighbourhood_1d(x, kernel_size, causal=causal, **options))


def map_windows_2d(dense: Dense, x: Image, kernel_size: int, stride: int = 1) -> Convolved:
    """A dense map of the square neighbourhood of every `stride`-th position."""
    if in_portable_forms():
        return add_bias(convolution_2d(x, read(dense.kernel), kernel_size, stride), read(dense.bias))
    return dense(neighbourhood_2d(x, kernel_size, stride))


class Convolution2D(nnx.Module):
    """A weighted sum of the square neighbourhood of every `stride`-th position; zeros lie beyond the edges.

    The kernel is a map of the flat neighbourhood: row, column, feature.
    """

    def __init__(
        self, features_in: int, features_out: int, kernel_size: int, *, stride: int = 1, bias: bool, rngs: Rngs
    ):
        self._kernel_size, self._stride = kernel_size, stride
        inputs = kernel_size**2 * features_in
        self.map = Dense(inputs, features_out, axes=(None, "width"), bias=bias, rngs=rngs)

    def __call__(self, x: Image) -> Convolved:
        return map_windows_2d(self.map, x, self._kernel_size, self._stride)


class DepthwiseConvolution2D(nnx.Module):
    """A weighted sum of each position's square neighbourhood, each feature by itself."""

    def __init__(self, features: int, kernel_size: int, *, bias: bool, rngs: Rngs):
        self.kernel = normal(rngs, (kernel_size, kernel_size, features), kernel_size**2, (None, None, "width"))
        self.bias = zeros((features,), ("width",)) if bias else None

    def __call__(self, x: Image) -> Image:
        return add_bias(depthwise_2d(x, read(self.kernel)), read(self.bias))


class ConvolutionStem(nnx.Module):
    """From pixels to tokens by 3 x 3 convolutions that halve rows and columns, then a dense map (Xiao et al. 2021).

    Each is followed by LayerNorm and GELU; the features double from one to the next and end at `width`. Patches of one
    pixel take one convolution that halves nothing.
    """

    def __init__(self, config: ModelConfig, patch_size: int, channels: int, *, rngs: Rngs):
        number = max(1, patch_size.bit_length() - 1)
        sizes = [channels, *(max(1, config.width >> (number - 1 - place)) for place in range(number))]
        options = {"stride": 1 if patch_size == 1 else 2, "bias": config.bias, "rngs": rngs}
        pairs = itertools.pairwise(sizes)
        self.convolutions = nnx.List([Convolution2D(before, after, 3, **options) for before, after in pairs])
        self.norms = nnx.List([LayerNorm(NormKnobs.of(config), features) for features in sizes[1:]])
        self.output = Dense(config.width, config.width, axes=(None, "width"), bias=config.bias, rngs=rngs)

    def __call__(self, x: Image) -> Convolved:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = ACTIVATIONS["gelu"](norm(convolution(x)))
        return self.output(x)


class PoolingStem(nnx.Module):
    """From pixels to tokens by a 7 x 7 convolution, BatchNorm, ReLU and a maximum of 3 x 3, each every second position.

    The start of a ResNet (He et al. 2016, table 1): rows and columns become a quarter.
    """

    def __init__(self, config: ModelConfig, channels: int, *, rngs: Rngs):
        self.convolution = Convolution2D(channels, config.width, 7, stride=2, bias=False, rngs=rngs)
        self.norm = BatchNorm(NormKnobs.of(config), config.width)

    def __call__(self, x: Image) -> Convolved:
        return max_pool_2d(jnp.maximum(self.norm(self.convolution(x)), 0), 3, 2)
