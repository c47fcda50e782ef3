"""What a model's knobs alone prove about it: whether it is odd, and what can reach what. The bounds rest on these."""

import math

from flaxformer_lab.model_config import ConvolutionConfig, ModelConfig, RecurrentConfig, TransformerConfig

ODD_ACTIVATIONS = ("identity", "tanh")


def is_odd(config: ModelConfig) -> bool:
    """Whether f(-X) = -f(X) for every value of the parameters.

    True without biases and added positions where each token-wise map is odd: LayerNorm and RMSNorm are, a gate (a
    product of two odd maps) is not. Attention of every kind is: its weights do not change when all of X does so.
    """
    if isinstance(config, RecurrentConfig) or config.name == "factorization_machine" or config.bias:
        return False
    if not isinstance(config, TransformerConfig):
        return config.activation in ODD_ACTIVATIONS
    if config.position not in ("off", "rotary"):
        return False
    return config.ffn.kind == "off" or (
        config.ffn.kind in ("mlp", "diagonal") and config.ffn.activation in ODD_ACTIVATIONS
    )


def mixes_features(config: ModelConfig, tokens: int) -> bool:
    """Whether one feature of the stream can reach another for some value of the parameters, given so many tokens."""
    if config.name == "factorization_machine":
        return True
    if not isinstance(config, TransformerConfig):
        return config.depth > 0
    if config.depth == 0:
        return False
    return config.norm.kind != "off" or config.ffn.kind not in ("off", "diagonal") or _attention_mixes(config, tokens)


def _attention_mixes(config: TransformerConfig, tokens: int) -> bool:
    """Through a dense map; through channel weights; through scores that a head's features share."""
    attention = config.attention
    if attention.kind == "off":
        return False
    if attention.projection == "dense" or attention.output == "dense":
        return True
    # A lone token's weight is 1 whatever its score is, and weights that do not see the input carry no feature over.
    scores_matter = attention.kind == "channel" or (attention.kind == "softmax" and tokens > 1)
    return scores_matter and config.head_dim > 1


def reach(config: ModelConfig) -> float:
    """How many tokens back a token can see: 0 without token mixing, infinity with attention or a recurrence."""
    if config.name in ("mlp", "factorization_machine") or config.depth == 0:
        return 0
    if isinstance(config, ConvolutionConfig):
        return config.reach
    if isinstance(config, TransformerConfig) and config.attention.kind == "off":
        return 0
    return math.inf


def is_affine(config: ModelConfig, tokens: int) -> bool:
    """Whether the output is an affine map of the token vectors for every value of the parameters."""
    if not isinstance(config, TransformerConfig):
        return config.depth == 0 if config.name in ("mlp", "lstm", "gru") else False
    if config.depth == 0:
        return config.norm.kind == "off"
    ffn = config.ffn.kind == "off" or (config.ffn.kind in ("mlp", "diagonal") and config.ffn.activation == "identity")
    # A lone token's softmax weight is 1; static and mean weights do not see the input.
    attention = config.attention.kind in ("off", "static", "mean") or (
        config.attention.kind == "softmax" and tokens == 1
    )
    return config.norm.kind == "off" and ffn and attention
