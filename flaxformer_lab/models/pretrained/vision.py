"""ViT and DeiT: pre-norm, with a class token."""

from functools import partial

import numpy as np
from flax import nnx

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import TransformerConfig
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
    same,
    size,
)
from flaxformer_lab.modules.embedding import PatchEmbedding
from flaxformer_lab.modules.rngs import Rngs


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
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))
