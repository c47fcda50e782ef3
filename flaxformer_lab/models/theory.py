"""What a model's knobs alone prove about it: whether it is odd, and what can reach what. The bounds rest on these."""

import math

from flaxformer_lab.model_config import ConvolutionConfig, ModelConfig, RecurrentConfig, TransformerConfig

ODD_ACTIVATIONS = ("identity", "tanh")


def is_odd(config: ModelConfig) -> bool:
    """Whether f(-X) = -f(X) for every value of the parameters, those of a dense embedding and head included.

    True without biases and added positions where each token-wise map is odd: LayerNorm and RMSNorm are, a gate (a
    product of two odd maps) is not. Attention of every kind is: its weights do not change when all of X does so.
    """
    if config.bias or config.name == "factorization_machine":
        return False
    if isinstance(config, TransformerConfig) and config.position not in ("off", "rotary"):
        return False
    if config.depth == 0:
        return True
    if isinstance(config, RecurrentConfig):
        return False
    if not isinstance(config, TransformerConfig):
        return config.activation in ODD_ACTIVATIONS
    return config.ffn.kind == "off" or (
        config.ffn.kind in ("mlp", "diagonal") and config.ffn.activation in ODD_ACTIVATIONS
    )


def mixes_features(config: ModelConfig, tokens: int) -> bool:
    """Whether one feature of the stream can reach another for some value of the parameters, given so many tokens."""
    if config.name == "factorization_machine" or _normalises(config):
        return True
    if config.depth == 0 or not isinstance(config, TransformerConfig):
        return config.depth > 0
    return config.ffn.kind not in ("off", "diagonal") or _attention_mixes(config, tokens)


def _normalises(config: ModelConfig) -> bool:
    """Whether there is a norm, which a model without any block has as well."""
    return hasattr(config, "norm") and config.norm.kind != "off"


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
        return 0.0
    if isinstance(config, ConvolutionConfig):
        return float(config.reach)
    if isinstance(config, TransformerConfig) and (config.attention.kind == "off" or _lone_channel(config)):
        return 0.0
    return math.inf


def _lone_channel(config: TransformerConfig) -> bool:
    """Whether channel attention has but one feature a head, whose weight on itself is 1 whatever the tokens are."""
    return config.attention.kind == "channel" and config.head_dim == 1


def is_affine(config: ModelConfig, tokens: int) -> bool:
    """Whether the output is an affine map of the token vectors for every value of the parameters."""
    if config.name == "factorization_machine" or _normalises(config):
        return False
    if config.depth == 0:
        return True
    if not isinstance(config, TransformerConfig):
        return not isinstance(config, RecurrentConfig) and config.activation == "identity"
    ffn = config.ffn.kind == "off" or (config.ffn.kind in ("mlp", "diagonal") and config.ffn.activation == "identity")
    # A lone token's softmax weight is 1; static and mean weights do not see the input.
    attention = (
        config.attention.kind in ("off", "static", "mean")
        or (config.attention.kind == "softmax" and tokens == 1)
        or _lone_channel(config)
    )
    return ffn and attention
