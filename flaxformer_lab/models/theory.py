"""What a model's knobs alone prove about it: whether it is odd, and what can reach what. The bounds rest on these."""

import math

from flaxformer_lab.model_config import ConvolutionConfig, ModelConfig, RecurrentConfig, TransformerConfig

ODD_ACTIVATIONS = ("identity", "tanh")


def is_odd(config: ModelConfig) -> bool:
    """Whether f(-X) = -f(X) for every value of the parameters, those of a dense embedding and head included.

    True without biases and added positions where each token-wise map is odd: the norms are, a gate (a product of two
    odd maps, or of one with a sigmoid) is not. Attention is where its weights do not change when all of X does so:
    every kind but linear, whose positive features do. Lightning's are products q . k, which do not.
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
    return _attention_is_odd(config) and _ffn_is_odd(config)


def _attention_is_odd(config: TransformerConfig) -> bool:
    attention = config.attention
    if attention.kind == "off":
        return True
    return attention.kind != "linear" and attention.activation in ODD_ACTIVATIONS and not attention.gate


def _ffn_is_odd(config: TransformerConfig) -> bool:
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
    """Through a dense map, a norm or a gate; through channel weights; through scores that a head's features share."""
    attention = config.attention
    if attention.kind == "off":
        return False
    if attention.projection == "dense" or attention.output == "dense" or attention.norm != "off" or attention.gate:
        return True
    # Weights that do not see the input carry no feature over; lightning's see it even where a token is alone.
    scores_matter = attention.kind in ("channel", "lightning") or _weighs(config, tokens)
    return scores_matter and config.head_dim > 1


def _weighs(config: TransformerConfig, tokens: int) -> bool:
    """Whether attention chooses among tokens by what they hold: a lone token's weight is 1 whatever its score is."""
    return config.attention.kind in ("softmax", "linear") and tokens > 1 and config.attention.window != 1


def reach(config: ModelConfig) -> float:
    """How many tokens back a token can see: 0 without token mixing, infinity with attention or a recurrence.

    A window ends a layer's sight, and each layer looks on from where the one below it could see.
    """
    if config.name in ("mlp", "factorization_machine") or config.depth == 0:
        return 0.0
    if isinstance(config, ConvolutionConfig):
        return float(config.reach)
    if isinstance(config, TransformerConfig) and (config.attention.kind == "off" or _lone_channel(config)):
        return 0.0
    if isinstance(config, TransformerConfig) and config.attention.window is not None:
        return float(config.depth * (config.attention.window - 1))
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
    return ffn and (config.attention.kind == "off" or _attention_is_affine(config, tokens))


def _attention_is_affine(config: TransformerConfig, tokens: int) -> bool:
    """Static and mean weights do not see the input; those of softmax and linear do, where there is a choice."""
    attention = config.attention
    if attention.activation != "identity" or attention.norm != "off" or attention.gate:
        return False
    if attention.kind in ("lightning", "channel"):
        return _lone_channel(config)
    return not _weighs(config, tokens)
