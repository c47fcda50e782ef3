"""The network of a task whose inputs are images."""

import math

from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.convolution import ConvolutionStem, PoolingStem
from flaxformer_lab.modules.embedding import PatchEmbedding, StemEmbedding
from flaxformer_lab.modules.rngs import Rngs


def image_network(
    config: ModelConfig,
    shape: tuple[int, int, int],
    *,
    patch_size: int,
    outputs: int,
    stem: str = "patches",
    pooling: str = "mean",
) -> PureNetwork:
    """Logits of images of a shape (rows, columns, channels); a patch, or what the stem makes of it, is a token."""
    rows, columns, channels = shape
    class_token = pooling == "class_token"
    grid = rows // patch_size, columns // patch_size

    def embedding(rngs: Rngs) -> PatchEmbedding | StemEmbedding:
        options = {"class_token": class_token, "dtype": config.dtype, "rngs": rngs}
        if stem == "patches":
            return PatchEmbedding(patch_size, channels, config.width, bias=config.bias, **options)
        if stem == "convolutions":
            return StemEmbedding(ConvolutionStem(config, patch_size, channels, rngs=rngs), config.width, **options)
        return StemEmbedding(PoolingStem(config, channels, rngs=rngs), config.width, **options)

    def build(rngs: Rngs) -> Network:
        return Network(
            config,
            embedding=embedding(rngs),
            grid=(math.prod(grid) + 1,) if class_token else grid,
            outputs=outputs,
            pooling=pooling,
            rngs=rngs,
        )

    return functionalize(build)
