"""The convolutional baseline: residual blocks over a sequence, or over an image's grid of patches."""

import math

from flax import nnx
from jaxtyping import Array, Bool, Float

from flaxformer_lab import registry
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.functional.linear import broadcast_parameter
from flaxformer_lab.model_config import ConvolutionConfig
from flaxformer_lab.models import theory
from flaxformer_lab.modules.convolution import map_windows_1d, map_windows_2d
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.projection import Dense, normal
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read

TokenVectors = Float[Array, "batch tokens width"]


class Convolution(nnx.Module):
    """A weighted sum of each token's neighbourhood; tokens that are padding count as zeros."""

    def __init__(self, config: ConvolutionConfig, *, grid: tuple[int, ...], dilation: int = 1, rngs: Rngs):
        self._config, self._grid, self._dilation = config, grid, dilation
        window = config.kernel_size ** (2 if config.name == "cnn_2d" else 1)
        self.map = Dense(window * config.width, config.width, axes=(None, "width"), bias=config.bias, rngs=rngs)

    def __call__(self, x: TokenVectors, valid: Bool[Array, "batch tokens"] | None) -> TokenVectors:
        x = x if valid is None else x * valid[:, :, None].astype(x.dtype)
        if self._config.name == "cnn_1d":
            options = {"causal": self._config.causal, "dilation": self._dilation}
            return map_windows_1d(self.map, x, self._config.kernel_size, **options)
        image = x.reshape(x.shape[0], *self._grid, x.shape[2])
        return map_windows_2d(self.map, image, self._config.kernel_size).reshape(x.shape)


class ConvolutionBlock(nnx.Module):
    """x + conv(activation(conv(norm(x)))), a residual block with its norm first (He et al. 2016)."""

    def __init__(self, config: ConvolutionConfig, *, layer: int, grid: tuple[int, ...], rngs: Rngs):
        options = {"grid": grid, "dilation": config.dilation**layer, "rngs": rngs}
        self._activation = ACTIVATIONS[config.activation]
        self.norm = make_norm(config)
        self.first = Convolution(config, **options)
        self.second = Convolution(config, **options)

    def __call__(self, x: TokenVectors, valid: Bool[Array, "batch tokens"] | None) -> TokenVectors:
        y = self.norm(x, valid) if self.norm else x
        return x + self.second(self._activation(self.first(y, valid)), valid)


_DECLARED = {
    "odd": lambda config, tokens: config.position == "off" and theory.layers_are_odd(config, tokens),
    "affine": theory.layers_are_affine,
    "mixes_features": theory.layers_mix_features,
    "causal": theory.config_causal,
    "reach": lambda config, tokens: config.reach,
    "attends": False,
    "has_token_weights": False,
    "decodes": False,
    "shards_tokens": False,
}


@registry.register("model", "cnn_2d", config=ConvolutionConfig, needs_grid=True, **_DECLARED)
@registry.register("model", "cnn_1d", config=ConvolutionConfig, needs_grid=False, **_DECLARED)
class ConvolutionalNetwork(nnx.Module):
    """Blocks, and a final norm."""

    def __init__(self, config: ConvolutionConfig, *, grid: tuple[int, ...], rngs: Rngs):
        options, size = {"grid": grid, "rngs": rngs}, (math.prod(grid), config.width)
        self.position = normal(rngs, size, config.width, (None, "width")) if config.position == "learned" else None
        self.blocks = nnx.List([ConvolutionBlock(config, layer=layer, **options) for layer in range(config.depth)])
        self.norm = make_norm(config)

    def __call__(
        self,
        x: TokenVectors,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        keys=None,
        intermediates: Intermediates = DISABLED,
    ) -> TokenVectors:
        del keys  # there is no dropout
        if self.position is not None:
            x = x + broadcast_parameter(read(self.position)[: x.shape[1]], x.shape, x.dtype)
        x = intermediates.hook_point("input", x)
        for number, block in enumerate(self.blocks):
            x = intermediates.within(f"blocks.{number}").hook_point("output", block(x, valid))
        x = self.norm(x, valid) if self.norm else x
        return intermediates.hook_point("output", x)
