"""What a model's knobs alone prove about it: its symmetries, and what can reach what. The bounds rest on these.

The parts declare it (`registry.PROPERTIES`). What a part does not declare proves nothing: then a model counts as
neither odd nor affine, as mixing features, and as seeing everything.
"""

import math
from typing import Any

from flaxformer_lab import registry
from flaxformer_lab.functional.feedforward import ODD_ACTIVATIONS
from flaxformer_lab.model_config import ModelConfig, TransformerConfig
from flaxformer_lab.modules.projection import PROJECTIONS
from flaxformer_lab.registry import all_of, any_of


def is_odd(config: ModelConfig, tokens: int) -> bool:
    """Whether f(-X) = -f(X) for every value of the parameters, those of a dense embedding and head included."""
    return _ask(config, "odd", tokens) is True


def is_affine(config: ModelConfig, tokens: int) -> bool:
    """Whether the output is an affine map of the token vectors for every value of the parameters."""
    return _ask(config, "affine", tokens) is True


def mixes_features(config: ModelConfig, tokens: int) -> bool:
    """Whether one feature of the stream can reach another for some value of the parameters, given so many tokens."""
    return _ask(config, "mixes_features", tokens) is not False


def block_size(config: ModelConfig, tokens: int) -> int:
    """Features of the stream reach each other only inside blocks of so many, side by side, whatever the parameters are.

    1 where none reaches another, the model's width where any may.
    """
    if not mixes_features(config, tokens):
        return 1
    found = _ask(config, "block_size", tokens)
    return config.width if found is None else found


def rank(config: ModelConfig, tokens: int) -> int:
    """A token's output follows from so many sums of its features at most, or lies in so many dimensions."""
    found = _ask(config, "rank", tokens)
    return config.width if found is None else min(found, config.width)


def reach(config: ModelConfig, tokens: int) -> float:
    """How many tokens back a token can see: 0 without token mixing, infinity with attention or a recurrence."""
    found = _ask(config, "reach", tokens)
    return math.inf if found is None else float(found)


def is_scale_invariant(config: ModelConfig) -> bool:
    """Whether f of tokens a_t x_t is f(X) for all a_t > 0, up to the norm's epsilon, after a dense or no embedding.

    So it is where a norm over each token's features comes before all else (with placement=post it does), no skip
    connection passes it by, and neither bias nor position is added before it. What follows does not matter.
    """
    if not isinstance(config, TransformerConfig) or config.bias or config.position not in ("off", "rotary"):
        return False
    if config.norm.kind not in ("layernorm", "rmsnorm", "srmsnorm"):
        return False
    first_skip = config.skip.ffn if config.attention.kind == "off" else config.skip.attention
    if config.norm.outer_place == "start":
        return True
    if config.depth == 0:
        return config.norm.outer_place == "end"
    return config.norm.placement == "pre" and not first_skip


def _ask(config: ModelConfig, key: str, tokens: int) -> Any:
    return registry.ask("model", config.name, key, config, tokens)


# ------------------------------------------------------------------- the Transformer, by its parts and knobs


def transformer_is_odd(config: TransformerConfig, tokens: int | None) -> bool | None:
    """Without biases and added positions, where each token-wise map is odd and the weights do not change with -X.

    The norms over a token's features are odd, BatchNorm with its averages is not; nor is a gate (a product of two odd
    maps, or of one with a sigmoid).
    """
    if config.bias or config.position not in ("off", "rotary") or _is_batch_normalised(config):
        return False
    attention = config.attention
    knobs = attention.kind == "off" or (attention.activation in ODD_ACTIVATIONS and not attention.gate)
    return config.depth == 0 or all_of(knobs, _of_parts(config, "odd", tokens, all_of))


def transformer_is_affine(config: TransformerConfig, tokens: int | None) -> bool | None:
    """Without norms, where both parts are affine."""
    if _is_batch_normalised(config):
        return None
    if config.norm.kind != "off":
        return False
    attention = config.attention
    knobs = attention.activation == "identity" and attention.norm == "off" and not attention.gate
    return config.depth == 0 or all_of(attention.kind == "off" or knobs, _of_parts(config, "affine", tokens, all_of))


def transformer_mixes_features(config: TransformerConfig, tokens: int | None) -> bool | None:
    """Through a map that mixes, a norm, which a model without any block has as well, a gate, or a part."""
    if _is_batch_normalised(config):
        return None
    if config.norm.kind != "off":
        return True
    attention = config.attention
    maps = (PROJECTIONS[kind].mixes_features(attention.block_size) for kind in (attention.projection, attention.output))
    mixed = any(maps) or attention.norm != "off" or attention.gate
    parts = _of_parts(config, "mixes_features", tokens, any_of)
    return config.depth > 0 and any_of(attention.kind != "off" and mixed, parts)


def transformer_block_size(config: TransformerConfig, tokens: int | None) -> int | None:
    """The largest of those of its maps, where all mix inside blocks, each of which holds whole blocks of the others."""
    attention, sizes = config.attention, []
    if config.norm.kind != "off":
        return None
    if attention.kind != "off":
        if attention.norm != "off" or attention.gate:
            return None
        if registry.ask("attention", attention.kind, "mixes_features", config, tokens) is not False:
            return None  # through the weights, which see all features of a head
        maps = (attention.projection, attention.output)
        for kind in maps:
            apart = not PROJECTIONS[kind].mixes_features(attention.block_size)
            sizes.append(1 if apart else attention.block_size if kind == "block" else None)
    if config.ffn.kind != "off":
        sizes.append(registry.ask("ffn", config.ffn.kind, "block_size", config, tokens))
    if None in sizes or config.depth == 0:
        return None
    return max(sizes) if all(max(sizes) % size == 0 for size in sizes) else None


def transformer_rank(config: TransformerConfig, tokens: int | None) -> int | None:
    """The lower one of its two ends', which no skip connection and no parallel part may pass by and no norm distort.

    The first part's: a value of low rank holds so many sums of a token's features, and all that follows sees only these
    where the weights see no features. The last part's: whatever came before, the output lies in so many dimensions.
    """
    attention, ffn, ends = config.attention, config.ffn.kind, []
    if config.norm.kind != "off" or config.depth == 0:
        return None
    if attention.kind != "off" and not config.skip.attention:
        blind = registry.ask("attention", attention.kind, "sees_content", config, tokens) is False
        passed_by = config.parallel and ffn != "off"
        if attention.projection == "low_rank" and blind and not attention.gate and not passed_by:
            ends.append(attention.rank)
        if attention.output == "low_rank" and ffn == "off":
            ends.append(attention.rank)
    if ffn != "off" and not config.skip.ffn:
        ends.append(registry.ask("ffn", ffn, "rank", config, tokens))
    return min((end for end in ends if end is not None), default=None)


def transformer_reach(config: TransformerConfig, tokens: int | None) -> float | None:
    """The sum over layers: each adds its own reach to that of the layer below."""
    if config.depth == 0:
        return 0.0
    found = _of_parts(config, "reach", tokens, lambda *each: None if None in each else sum(each))
    return None if found is None else float(config.depth * found)


def transformer_has_token_weights(config: TransformerConfig, tokens: int | None) -> bool | None:
    """What its attention declares; false where it is off."""
    kind = config.attention.kind
    return config.depth > 0 and kind != "off" and registry.ask("attention", kind, "has_token_weights", config, tokens)


def transformer_decodes(config: TransformerConfig, tokens: int | None) -> bool | None:
    """Where its attention does, and its FFN works on each token alone."""
    attention = config.attention.kind == "off" or registry.ask(
        "attention", config.attention.kind, "decodes", config, tokens
    )
    return all_of(attention, ffn_is_token_wise(config, tokens))


def ffn_is_token_wise(config: TransformerConfig, tokens: int | None) -> bool:
    """Whether the FFN declares that it works on each token alone, or there is none."""
    return config.ffn.kind == "off" or registry.ask("ffn", config.ffn.kind, "reach", config, tokens) == 0


def _of_parts(config: TransformerConfig, key: str, tokens: int | None, combine: Any) -> Any:
    """What the attention and the FFN declare, of those that are there, combined."""
    kinds = {"attention": config.attention.kind, "ffn": config.ffn.kind}
    return combine(*(registry.ask(part, kind, key, config, tokens) for part, kind in kinds.items() if kind != "off"))


# ------------------------------------------------------------- layers of linear maps with one activation


def layers_are_odd(config: Any, tokens: int | None) -> bool:
    """Without biases and with an odd activation; the norms over a token's features are odd."""
    del tokens
    return (
        not config.bias
        and not _is_batch_normalised(config)
        and (config.depth == 0 or config.activation in ODD_ACTIVATIONS)
    )


def layers_are_affine(config: Any, tokens: int | None) -> bool | None:
    """Without norms and with no activation."""
    del tokens
    if _is_batch_normalised(config):
        return None
    return not _normalises(config) and (config.depth == 0 or config.activation == "identity")


def layers_mix_features(config: Any, tokens: int | None) -> bool | None:
    """Through a norm, or any layer."""
    del tokens
    if _is_batch_normalised(config):
        return None
    return _normalises(config) or config.depth > 0


def _normalises(config: Any) -> bool:
    """Whether there is a norm, which a model without any block has as well."""
    return hasattr(config, "norm") and config.norm.kind != "off"


def _is_batch_normalised(config: Any) -> bool:
    return hasattr(config, "norm") and config.norm.kind == "batchnorm"


def config_causal(config: Any, tokens: int | None) -> bool:
    """What the config says: a knob, or the same for every config of that model."""
    del tokens
    return config.causal


def any_distance(config: Any, tokens: int | None) -> float:
    """The reach of layers each of which sees every token before it."""
    del tokens
    return math.inf if config.depth else 0.0
