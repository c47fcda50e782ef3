"""ViT and DeiT: pre-norm, with a class token; and ResNet."""

from functools import partial

import numpy as np
from flax import nnx

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import ResNetConfig, TransformerConfig
from flaxformer_lab.models.network import Network
from flaxformer_lab.models.pretrained.encoders import encoder_config
from flaxformer_lab.models.pretrained.heads import DistilledEmbedding, DistilledHead
from flaxformer_lab.models.pretrained.plan import (
    Plan,
    Settings,
    Source,
    Tensors,
    body_prefix,
    dense,
    norm,
    outputs,
    require,
    same,
    size,
)
from flaxformer_lab.models.resnet import BOTTLENECK
from flaxformer_lab.modules.convolution import PoolingStem
from flaxformer_lab.modules.embedding import PatchEmbedding, StemEmbedding
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.parsing import parse


def vit(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """ViT (Dosovitskiy et al. 2021), and DeiT (Touvron et al. 2021) with one more token and one or two heads."""
    image, patch, channels = (size(settings, key) for key in ("image_size", "patch_size", "num_channels"))
    if image % patch:
        raise ConfigError(
            f"patch_size={patch} does not divide image_size={image}, so pixels would be cut off; choose another model"
        )
    config, kind = encoder_config(settings, placement="pre"), settings["model_type"]
    distilled, two_heads = kind == "deit", architecture.endswith("WithTeacher")
    tokens = 1 + distilled + (image // patch) ** 2
    classes = outputs(tensors, "cls_classifier.bias" if two_heads else "classifier.bias")

    def build(config: TransformerConfig, rngs: Rngs) -> nnx.Module:
        options = {"bias": True, "class_token": True, "dtype": config.dtype, "rngs": rngs}
        embedding = (DistilledEmbedding if distilled else PatchEmbedding)(patch, channels, config.width, **options)
        head = {"head": DistilledHead(config, classes, rngs=rngs)} if two_heads else {"pooling": "class_token"}
        return Network(config, embedding=embedding, grid=(tokens,), outputs=classes, **head, rngs=rngs)

    body = body_prefix(f"{kind}.", tensors)
    convolution, squeezed = f"{body}embeddings.patch_embeddings.projection", partial(np.squeeze, axis=(0, 1))
    flattened = partial(_flattened, window=(channels, patch, patch))
    table = {
        "embedding.projection.kernel": Source(flattened, (f"{convolution}.weight",)),
        "embedding.projection.bias": Source(same, (f"{convolution}.bias",)),
        "embedding.class_token": Source(squeezed, (f"{body}embeddings.cls_token",)),
        "body.position": Source(partial(np.squeeze, axis=0), (f"{body}embeddings.position_embeddings",)),
        **norm("body.norm", f"{body}layernorm"),
    }
    if distilled:
        table["embedding.distillation_token"] = Source(squeezed, (f"{body}embeddings.distillation_token",))
    if two_heads:
        table |= dense("head.classes", "cls_classifier") | dense("head.distilled", "distillation_classifier")
    else:
        table |= dense("head", "classifier")
    for number in range(config.depth):
        ours, theirs = f"body.blocks.{number}", f"{body}encoder.layer.{number}"
        parts = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        table |= norm(f"{ours}.attention_norm", f"{theirs}.layernorm_before")
        options = {"heads": config.attention.num_heads, "bias": bool(settings.get("qkv_bias", True))}
        table |= dense(f"{ours}.attention.projection", *parts, **options)
        table |= dense(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
        table |= norm(f"{ours}.ffn_norm", f"{theirs}.layernorm_after")
        table |= dense(f"{ours}.ffn.up", f"{theirs}.intermediate.dense")
        table |= dense(f"{ours}.ffn.down", f"{theirs}.output.dense")
    return Plan(config, build, table)


def _flattened(kernel: np.ndarray, *, window: tuple[int, int, int]) -> np.ndarray:
    """A convolution's [width, channel, row, column] as a map of flat patches [row x column x channel, width]."""
    if kernel.shape[1:] != window:
        raise ValueError("the convolution has another window")
    return _window_first(kernel)


def _window_first(kernel: np.ndarray) -> np.ndarray:
    """A convolution's [features out, in, row, column] as a map of flat windows [row x column x in, features out]."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def resnet(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """ResNet (He et al. 2016): batch normalisation, and a stage of twice the features after each halving.

    Its files do not say how large images are; settings["image_size"] may, 224 by default.
    """
    del architecture
    require(settings, downsample_in_first_stage=False, downsample_in_bottleneck=False, hidden_act="relu")
    width, channels = (size(settings, key) for key in ("embedding_size", "num_channels"))
    image = size({"image_size": 224} | dict(settings), "image_size")
    depths, sizes, block = (settings.get(key) for key in ("depths", "hidden_sizes", "layer_type"))
    if block not in ("basic", "bottleneck"):
        raise ConfigError(f"layer_type={block!r} cannot be expressed by our config; choose basic or bottleneck")
    wider = BOTTLENECK if block == "bottleneck" else 1
    if not isinstance(depths, list) or sizes != [wider * width * 2**stage for stage in range(len(depths))]:
        raise ConfigError(
            f"hidden_sizes={sizes!r} with embedding_size={width} and depths={depths!r} cannot be expressed by our "
            f"config; choose a model whose first stage has {wider * width} features, and each other stage twice as many"
        )
    config, classes = parse(ResNetConfig, {"width": width, "depths": depths, "block": block}, "model"), "classifier.1"

    def build(config: ResNetConfig, rngs: Rngs) -> nnx.Module:
        stem = PoolingStem(config, channels, rngs=rngs)
        embedding = StemEmbedding(stem, config.width, class_token=False, dtype=config.dtype, rngs=rngs)
        options = {"grid": (-(-image // 4),) * 2, "outputs": outputs(tensors, f"{classes}.bias"), "pooling": "mean"}
        return Network(config, embedding=embedding, **options, rngs=rngs)

    body = body_prefix("resnet.", tensors)
    names = {"embedding.stem": f"{body}embedder.embedder"}  # ours to theirs
    for number, (stage, place) in enumerate((s, p) for s, blocks in enumerate(config.depths) for p in range(blocks)):
        ours, theirs = f"body.blocks.{number}", f"{body}encoder.stages.{stage}.layers.{place}"
        parts = {f"parts.{part}": f"layer.{part}" for part in range(2 if block == "basic" else 3)}
        changes = not place and (stage > 0 or wider > 1)
        parts |= {"shortcut": "shortcut"} if changes else {}
        names |= {f"{ours}.{our}": f"{theirs}.{their}" for our, their in parts.items()}
    table, state = dense("head", classes), {}
    for our, their in names.items():
        table[f"{our}.convolution.map.kernel"] = Source(_window_first, (f"{their}.convolution.weight",))
        table |= norm(f"{our}.norm", f"{their}.normalization")
        for average, name in (("mean", "running_mean"), ("variance", "running_var")):
            state[f"{our}.norm.{average}"] = Source(same, (f"{their}.normalization.{name}",))
    return Plan(config, build, table, buffers=r".*\.num_batches_tracked", state=state)
