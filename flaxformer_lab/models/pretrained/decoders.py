"""GPT-2, GPT-NeoX (Pythia) and Llama: pre-norm, causal, with a head over the vocabulary."""

from functools import partial

import numpy as np
from flax import nnx

from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.models.network import Network
from flaxformer_lab.models.pretrained.plan import (
    Plan,
    Settings,
    Source,
    Tensors,
    activation,
    body_prefix,
    dense,
    fused,
    model_config,
    norm,
    require,
    rotation,
    same,
    size,
    ties,
)
from flaxformer_lab.modules.embedding import TokenEmbedding
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs


def gpt2(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """GPT-2 (Radford et al. 2019): the head is the transposed embedding, without a bias."""
    del architecture
    require(settings, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, tokens = size(settings, "n_embd"), size(settings, "n_positions")
    config = model_config(
        width=width,
        depth=size(settings, "n_layer"),
        heads=size(settings, "n_head"),
        hidden=4 * width if settings.get("n_inner") is None else size(settings, "n_inner"),
        activation=activation(settings, "activation_function", "gelu_new"),
        norm={"placement": "pre", "epsilon": settings.get("layer_norm_epsilon", 1e-5)},
        causal=True,
    )
    body = body_prefix("transformer.", tensors)
    table = {
        "embedding.table": Source(same, (f"{body}wte.weight",)),
        "body.position": Source(same, (f"{body}wpe.weight",)),
        **norm("body.norm", f"{body}ln_f"),
        **dense("head", "lm_head", bias=None),
    }
    for number in range(config.depth):
        ours, theirs = f"body.blocks.{number}", f"{body}h.{number}"
        table |= norm(f"{ours}.attention_norm", f"{theirs}.ln_1")
        table |= _conv1d(f"{ours}.attention.projection", f"{theirs}.attn.c_attn", heads=config.attention.num_heads)
        table |= _conv1d(f"{ours}.attention.output", f"{theirs}.attn.c_proj")
        table |= norm(f"{ours}.ffn_norm", f"{theirs}.ln_2")
        table |= _conv1d(f"{ours}.ffn.up", f"{theirs}.mlp.c_fc")
        table |= _conv1d(f"{ours}.ffn.down", f"{theirs}.mlp.c_proj")
    tied = ties(settings, {"lm_head.weight": f"{body}wte.weight"})
    return Plan(config, _builder(settings, tokens), table, tied, r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")


def gpt_neox(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """GPT-NeoX (Black et al. 2022), Pythia: rotary positions in part, attention and FFN side by side."""
    del architecture
    require(settings, attention_bias=True)
    config = model_config(
        width=size(settings, "hidden_size"),
        depth=size(settings, "num_hidden_layers"),
        heads=size(settings, "num_attention_heads"),
        hidden=size(settings, "intermediate_size"),
        activation=activation(settings, "hidden_act", "gelu"),
        norm={"placement": "pre", "epsilon": settings.get("layer_norm_eps", 1e-5)},
        attention=rotation(settings, base="rotary_emb_base", share="rotary_pct", default_share=0.25),
        position="rotary",
        parallel=settings.get("use_parallel_residual", True),
        causal=True,
    )
    body = body_prefix("gpt_neox.", tensors)
    table = {
        "embedding.table": Source(same, (f"{body}embed_in.weight",)),
        **norm("body.norm", f"{body}final_layer_norm"),
        **dense("head", "embed_out", bias=None),
    }
    for number in range(config.depth):
        ours, theirs = f"body.blocks.{number}", f"{body}layers.{number}"
        table |= norm(f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        table |= dense(f"{ours}.attention.projection", f"{theirs}.attention.query_key_value")  # fused by head as ours
        table |= dense(f"{ours}.attention.output", f"{theirs}.attention.dense")
        table |= norm(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm")
        table |= dense(f"{ours}.ffn.up", f"{theirs}.mlp.dense_h_to_4h")
        table |= dense(f"{ours}.ffn.down", f"{theirs}.mlp.dense_4h_to_h")
    tied = ties(settings, {"embed_out.weight": f"{body}embed_in.weight"}, default=False)
    constants = r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    return Plan(config, _builder(settings, size(settings, "max_position_embeddings")), table, tied, constants)


def llama(settings: Settings, tensors: Tensors, architecture: str) -> Plan:
    """Llama (Touvron et al. 2023): RMSNorm, rotary positions, a gated FFN, grouped heads, no biases."""
    del architecture
    require(settings, attention_bias=False, mlp_bias=False)
    heads = size(settings, "num_attention_heads")
    shared = heads if settings.get("num_key_value_heads") is None else size(settings, "num_key_value_heads")
    head_dim = None if settings.get("head_dim") is None else size(settings, "head_dim")
    config = model_config(
        width=size(settings, "hidden_size"),
        depth=size(settings, "num_hidden_layers"),
        heads=heads,
        hidden=size(settings, "intermediate_size"),
        activation=activation(settings, "hidden_act", "silu"),
        norm={"kind": "rmsnorm", "placement": "pre", "epsilon": settings.get("rms_norm_eps", 1e-6)},
        attention=rotation(settings, base="rope_theta") | {"num_kv_heads": shared, "head_dim": head_dim},
        ffn={"kind": "gated"},
        position="rotary",
        bias=False,
        causal=True,
    )
    body = body_prefix("model.", tensors)
    table = {
        "embedding.table": Source(same, (f"{body}embed_tokens.weight",)),
        **norm("body.norm", f"{body}norm", bias=False),
        **dense("head", "lm_head", bias=None),
    }
    for number in range(config.depth):
        ours, theirs = f"body.blocks.{number}", f"{body}layers.{number}"
        parts = [f"{theirs}.self_attn.{part}_proj" for part in ("q", "k", "v")]
        table |= norm(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=False)
        table |= dense(f"{ours}.attention.projection", *parts, heads=shared, bias=None)
        table |= dense(f"{ours}.attention.output", f"{theirs}.self_attn.o_proj", bias=None)
        table |= norm(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm", bias=False)
        for part in ("gate", "up", "down"):
            table |= dense(f"{ours}.ffn.{part}", f"{theirs}.mlp.{part}_proj", bias=None)
    tied = ties(settings, {"lm_head.weight": f"{body}embed_tokens.weight"}, default=False)
    constants = r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    return Plan(config, _builder(settings, size(settings, "max_position_embeddings")), table, tied, constants)


def _builder(settings: Settings, tokens: int):
    vocabulary = size(settings, "vocab_size")

    def build(config: TransformerConfig, rngs: Rngs) -> nnx.Module:
        embedding = TokenEmbedding(vocabulary, config.width, dtype=config.dtype, rngs=rngs)
        head = Dense(config.width, vocabulary, axes=("width", None), bias=False, rngs=rngs)
        return Network(config, embedding=embedding, grid=(tokens,), outputs=vocabulary, head=head, rngs=rngs)

    return build


def _conv1d(ours: str, theirs: str, heads: int | None = None) -> dict[str, Source]:
    """GPT-2's Conv1D keeps [features in, features out]; with `heads`, all queries, then all keys, then all values."""
    make = same if heads is None else partial(_rearranged, heads=heads)
    return {f"{ours}.kernel": Source(make, (f"{theirs}.weight",)), f"{ours}.bias": Source(make, (f"{theirs}.bias",))}


def _rearranged(tensor: np.ndarray, *, heads: int) -> np.ndarray:
    if tensor.shape[-1] % 3:
        raise ValueError(f"its {tensor.shape[-1]} columns are not query, key and value")
    return fused(*np.split(tensor.T, 3), heads=heads).T
