"""What several kinds of attention declare (`registry.PROPERTIES`)."""

import math

from flaxformer_lab.model_config import TransformerConfig


def has_choice(config: TransformerConfig, tokens: int) -> bool:
    """Whether a token has more than one to attend to: the weight of a single one is 1, whatever its score is."""
    return tokens > 1 and config.attention.window != 1


def has_wide_heads(config: TransformerConfig, tokens: int | None) -> bool:
    """Whether a head has several features: of channel attention, the weight of a single one on itself is always 1."""
    del tokens
    return config.head_dim > 1


# Weights that sum to 1: a softmax of scores, or the same for every input.
WEIGHTS_FROM_SCORES = {
    "affine": lambda config, tokens: not has_choice(config, tokens),
    "mixes_features": lambda config, tokens: has_choice(config, tokens) and has_wide_heads(config, tokens),
    "sees_content": has_choice,
    "crosses": True,
    "has_token_weights": True,
}
WEIGHTS_FROM_POSITIONS = {
    "odd": True,
    "affine": True,
    "mixes_features": False,
    "sees_content": False,
    "crosses": False,
    "has_token_weights": True,
}

# What the cache of a token-by-token pass holds.
CACHES_TOKENS = {
    "causal": True,
    "windowed": True,
    "reach": lambda config, tokens: math.inf if config.attention.window is None else config.attention.window - 1,
    "decodes": True,
}
CACHES_A_SUM = {"causal": True, "windowed": False, "reach": math.inf, "decodes": True}
