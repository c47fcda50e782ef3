"""Residual networks for images: ResNet (He et al. 2016) in stages, and ConvNeXt's blocks (Liu et al. 2022)."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from flaxformer_lab import registry
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.model_config import ConvNeXtConfig, ResNetConfig
from flaxformer_lab.models import theory
from flaxformer_lab.modules.convolution import Convolution2D, DepthwiseConvolution2D, Image
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs

BOTTLENECK = 4  # a block's output has so many times the features of its 3 x 3 convolution
TokenVectors = Float[Array, "batch tokens width"]
_DECLARED = {
    "odd": theory.layers_are_odd,
    "affine": theory.layers_are_affine,
    "mixes_features": theory.layers_mix_features,
    "causal": theory.config_causal,
    "reach": lambda config, tokens: config.reach,
    "attends": False,
    "has_token_weights": False,
    "decodes": False,
    "needs_grid": True,
    "shards_tokens": False,
}


class NormedConvolution(nnx.Module):
    """norm(conv(x)); without a norm the convolution has a bias of its own."""

    def __init__(
        self,
        config: ResNetConfig,
        features_in: int,
        features_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        rngs: Rngs,
    ):
        bias = config.bias and config.norm.kind == "off"
        self.convolution = Convolution2D(features_in, features_out, kernel_size, stride=stride, bias=bias, rngs=rngs)
        self.norm = make_norm(config, features=features_out)

    def __call__(self, x: Image) -> Image:
        y = self.convolution(x)
        return self.norm(y) if self.norm else y


class ResNetBlock(nnx.Module):
    """activation(shortcut(x) + part(x)) with convolutions in the part, each but the last one with an activation.

    shortcut: x, or its norm(map(x)) where the number of features or of positions changes.
    """

    def __init__(self, config: ResNetConfig, features_in: int, features: int, stride: int, *, rngs: Rngs):
        self._activation = ACTIVATIONS[config.activation]
        size = config.kernel_size
        if config.block == "basic":
            features_out, sizes = features, [(features_in, features, size, stride), (features, features, size, 1)]
        else:
            features_out = BOTTLENECK * features
            outer = [(features_in, features, 1, 1), (features, features_out, 1, 1)]
            sizes = [outer[0], (features, features, size, stride), outer[1]]
        changes = stride != 1 or features_in != features_out
        shortcut = {"stride": stride, "rngs": rngs}
        self.shortcut = NormedConvolution(config, features_in, features_out, 1, **shortcut) if changes else None
        self.parts = nnx.List([NormedConvolution(config, *each[:3], stride=each[3], rngs=rngs) for each in sizes])

    def __call__(self, x: Image) -> Image:
        y = x
        for number, part in enumerate(self.parts):
            y = part(self._activation(y) if number else y)
        return self._activation(y + (self.shortcut(x) if self.shortcut else x))


@registry.register("model", "resnet", config=ResNetConfig, **_DECLARED)
class ResNet(nnx.Module):
    """Stages of blocks; the output has fewer tokens than the input where there are several stages.

    features_out: features of an output token.
    """

    def __init__(self, config: ResNetConfig, *, grid: tuple[int, ...], rngs: Rngs):
        self._grid, blocks, features = grid, [], config.width
        for stage, number in enumerate(config.depths):
            for place in range(number):
                stride = 2 if stage and not place else 1
                blocks.append(ResNetBlock(config, features, config.width * 2**stage, stride, rngs=rngs))
                features = config.width * 2**stage * (BOTTLENECK if config.block == "bottleneck" else 1)
        self.blocks, self.features_out = nnx.List(blocks), features

    def __call__(
        self,
        x: TokenVectors,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        keys=None,
        intermediates: Intermediates = DISABLED,
    ) -> Float[Array, "batch tokens_out features_out"]:
        del keys, valid  # there is no dropout, and images are whole
        x = intermediates.hook_point("input", x)
        x = x.reshape(x.shape[0], *self._grid, x.shape[-1])
        for number, block in enumerate(self.blocks):
            x = _hooked(intermediates.within(f"blocks.{number}"), block(x))
        return intermediates.hook_point("output", x.reshape(x.shape[0], -1, x.shape[-1]))


def _hooked(intermediates: Intermediates, x: Image) -> Image:
    """The image, offered as `output` with its positions as tokens."""
    return intermediates.hook_point("output", x.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)


class ConvNeXtBlock(nnx.Module):
    """x + W2 activation(W1 norm(depthwise convolution(x)))."""

    def __init__(self, config: ConvNeXtConfig, *, rngs: Rngs):
        hidden = max(1, round(config.width * config.expansion))
        self._activation = ACTIVATIONS[config.activation]
        self.convolution = DepthwiseConvolution2D(config.width, config.kernel_size, bias=config.bias, rngs=rngs)
        self.norm = make_norm(config)
        self.up = Dense(config.width, hidden, axes=("width", "hidden"), bias=config.bias, rngs=rngs)
        self.down = Dense(hidden, config.width, axes=("hidden", "width"), bias=config.bias, rngs=rngs)

    def __call__(self, x: Image) -> Image:
        y = self.convolution(x)
        y = self.norm(y) if self.norm else y
        return x + self.down(self._activation(self.up(y)))


@registry.register("model", "convnext", config=ConvNeXtConfig, **_DECLARED)
class ConvNeXt(nnx.Module):
    """Blocks, and a final norm."""

    def __init__(self, config: ConvNeXtConfig, *, grid: tuple[int, ...], rngs: Rngs):
        self._grid = grid
        self.blocks = nnx.List([ConvNeXtBlock(config, rngs=rngs) for _ in range(config.depth)])
        self.norm = make_norm(config)

    def __call__(
        self,
        x: TokenVectors,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        keys=None,
        intermediates: Intermediates = DISABLED,
    ) -> TokenVectors:
        del keys, valid  # there is no dropout, and images are whole
        x = intermediates.hook_point("input", x)
        y = x.reshape(x.shape[0], *self._grid, x.shape[-1])
        for number, block in enumerate(self.blocks):
            y = _hooked(intermediates.within(f"blocks.{number}"), block(y))
        y = self.norm(y) if self.norm else y
        return intermediates.hook_point("output", y.reshape(x.shape))
