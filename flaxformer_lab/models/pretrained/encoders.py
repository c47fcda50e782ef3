"""BERT, RoBERTa and DistilBERT: post-norm, bidirectional, with one of several heads."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.models.network import Network
from flaxformer_lab.models.pretrained.heads import EmbeddingHead, MaskedHead, PooledHead
from flaxformer_lab.models.pretrained.plan import (
    Plan,
    Settings,
    Source,
    Tensors,
    activation,
    body_prefix,
    dense,
    model_config,
    norm,
    outputs,
    require,
    same,
    size,
    ties,
)
from flaxformer_lab.modules.embedding import TokenEmbedding
from flaxformer_lab.modules.rngs import Rngs

# Of one block, each without the block's own prefix: query, key, value, output, norm, up, down, norm.
BERT_PARTS = (
    *(f"attention.self.{part}" for part in ("query", "key", "value")),
    *("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
)
DISTILBERT_PARTS = (
    *(f"attention.{part}_lin" for part in ("q", "k", "v", "out")),
    *("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
)


class _Head(NamedTuple):
    """pooling and module of a head, its classes, the table of its leaves, and the tensors that may be left out."""

    pooling: str
    make: Callable[[TransformerConfig, Rngs], nnx.Module] | None
    outputs: int
    table: dict[str, Source]
    ties: dict[str, str]


def bert(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """BERT (Devlin et al. 2019); MiniLM (Wang et al. 2020) is one."""
    require(settings, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    config, body = encoder_config(settings, placement="post"), body_prefix("bert.", tensors)
    options = config, settings, tensors, architecture
    head = _head(
        *options,
        masked=("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"),
        masked_bias="cls.predictions.bias",
        word_table=f"{body}embeddings.word_embeddings.weight",
        pooled=(f"{body}pooler.dense", "classifier", "tanh"),
    )
    return _encoder(config, settings, body, head, parts=BERT_PARTS, layers="encoder.layer", segments=True)


def roberta(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """RoBERTa (Liu et al. 2019): the first positions of its table are of padding."""
    require(settings, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, pad_token_id=1)
    config, body = encoder_config(settings, placement="post"), body_prefix("roberta.", tensors)
    head = _head(
        *(config, settings, tensors, architecture),
        masked=("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"),
        masked_bias="lm_head.bias",
        masked_activation="gelu",
        word_table=f"{body}embeddings.word_embeddings.weight",
        pooled=("classifier.dense", "classifier.out_proj", "tanh"),
    )
    return _encoder(config, settings, body, head, parts=BERT_PARTS, layers="encoder.layer", segments=True, first=2)


def distilbert(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """DistilBERT (Sanh et al. 2019): BERT without segments."""
    width, body = size(settings, "dim"), body_prefix("distilbert.", tensors)
    config = model_config(
        width=width,
        depth=size(settings, "n_layers"),
        heads=size(settings, "n_heads"),
        hidden=size(settings, "hidden_dim"),
        activation=activation(settings, "activation", "gelu"),
        norm={"placement": "post", "epsilon": 1e-12},
    )
    head = _head(
        *(config, settings, tensors, architecture),
        masked=("vocab_transform", "vocab_layer_norm", "vocab_projector"),
        masked_bias="vocab_projector.bias",
        word_table=f"{body}embeddings.word_embeddings.weight",
        pooled=("pre_classifier", "classifier", "relu"),
    )
    return _encoder(config, settings, body, head, parts=DISTILBERT_PARTS, layers="transformer.layer", segments=False)


def encoder_config(settings: Settings, *, placement: str) -> TransformerConfig:
    """The config of BERT, ViT and others whose settings have the same names."""
    return model_config(
        width=size(settings, "hidden_size"),
        depth=size(settings, "num_hidden_layers"),
        heads=size(settings, "num_attention_heads"),
        hidden=size(settings, "intermediate_size"),
        activation=activation(settings, "hidden_act", "gelu"),
        norm={"placement": placement, "epsilon": settings.get("layer_norm_eps", 1e-12)},
        causal=False,
    )


def _head(
    config: TransformerConfig,
    settings: Settings,
    tensors: Tensors,
    architecture: str,
    *,
    masked: tuple[str, str, str],
    masked_bias: str,
    word_table: str,
    pooled: tuple[str, str, str],
    masked_activation: str | None = None,
) -> _Head:
    if architecture.endswith("ForMaskedLM"):
        vocabulary, (transform, norm_, output) = size(settings, "vocab_size"), masked
        table = dense("head.transform", transform) | norm("head.norm", norm_) | dense("head.output", output)
        tied = ties(settings, {f"{output}.weight": word_table}) | {f"{output}.bias": masked_bias}
        options = {"outputs": vocabulary, "activation": masked_activation}
        return _Head("off", lambda config, rngs: MaskedHead(config, **options, rngs=rngs), vocabulary, table, tied)
    if architecture.endswith("ForSequenceClassification"):
        pooler, classifier, activation_ = pooled
        classes = outputs(tensors, f"{classifier}.bias")
        table = dense("head.pooler", pooler) | dense("head.output", classifier)
        options = {"outputs": classes, "activation": activation_}
        return _Head("class_token", lambda config, rngs: PooledHead(config, **options, rngs=rngs), classes, table, {})
    if architecture.endswith("ForTokenClassification"):
        return _Head("off", None, outputs(tensors), dense("head", "classifier"), {})
    pooling = settings.get("pooling", {"mode": "off", "normalised": False})  # of sentence-transformers (folder.py)
    make_head = lambda config, rngs: EmbeddingHead(normalised=pooling["normalised"])  # noqa: E731
    return _Head(pooling["mode"], make_head, config.width, {}, {})


def _encoder(
    config: TransformerConfig,
    settings: Settings,
    body: str,
    head: _Head,
    *,
    parts: tuple[str, ...],
    layers: str,
    segments: bool,
    first: int = 0,
) -> Plan:
    """first: the row of the position table that is the first token's."""
    vocabulary, tokens = size(settings, "vocab_size"), size(settings, "max_position_embeddings") - first

    def build(config: TransformerConfig, rngs: Rngs) -> nnx.Module:
        embedding = TokenEmbedding(vocabulary, config.width, dtype=config.dtype, rngs=rngs)
        options: dict[str, Any] = {"pooling": head.pooling, "head": head.make and head.make(config, rngs)}
        return Network(config, embedding=embedding, grid=(tokens,), outputs=head.outputs, **options, rngs=rngs)

    positions = (f"{body}embeddings.position_embeddings.weight",)
    if segments:
        place = Source(
            partial(_plus_first, first=first), (*positions, f"{body}embeddings.token_type_embeddings.weight"), 1
        )
    else:
        place = Source(same, positions)
    table = {
        "embedding.table": Source(same, (f"{body}embeddings.word_embeddings.weight",)),
        "body.position": place,
        **norm("body.norm", f"{body}embeddings.LayerNorm"),
    }
    for number in range(config.depth):
        ours, theirs = f"body.blocks.{number}", [f"{body}{layers}.{number}.{part}" for part in parts]
        table |= dense(f"{ours}.attention.projection", *theirs[:3], heads=config.attention.num_heads)
        table |= dense(f"{ours}.attention.output", theirs[3]) | norm(f"{ours}.attention_norm", theirs[4])
        table |= dense(f"{ours}.ffn.up", theirs[5]) | dense(f"{ours}.ffn.down", theirs[6])
        table |= norm(f"{ours}.ffn_norm", theirs[7])
    unused = r"(\w+\.)?embeddings\.position_ids"
    if not head.table:  # a body alone may have the pooler of a head that it has not
        unused += r"|(\w+\.)?pooler\.dense\.(weight|bias)"
    return Plan(config, build, table | head.table, head.ties, unused)


def _plus_first(positions: np.ndarray, segments: np.ndarray, *, first: int) -> np.ndarray:
    """Every token is in segment 0, so its vector moves into the position table."""
    if positions.shape[1:] != segments.shape[1:]:
        raise ValueError("the two tables differ in width")
    return positions[first:] + segments[:1]
