"""Token mixing with parameters: projections around one of the formulas of `functional/attention.py`."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional import attention as formulas
from flaxformer_lab.functional.attention import Heads, Valid
from flaxformer_lab.functional.position import rotary
from flaxformer_lab.functional.softmax_attention import softmax_attention
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.projection import PROJECTIONS, ones, zeros
from flaxformer_lab.modules.taps import CLOSED, Taps

Stream = Float[Array, "batch tokens width"]


class Attention(nnx.Module):
    """project, mix within heads, merge heads, project back. A subclass says how a head mixes.

    `parts` counts what is projected from the input in one fused map: 3 for query, key and value, 1 for the value alone.
    """

    parts = 3

    def __init__(self, config: TransformerConfig, *, tokens: int, rngs: nnx.Rngs):
        del tokens
        self._heads, self._head_dim = config.attention.num_heads, config.head_dim
        self._causal = config.causal
        self._rotary = config.position == "rotary"
        merged = self._heads * self._head_dim
        project = PROJECTIONS[config.attention.projection]
        output = PROJECTIONS[config.attention.output]
        self.projection = project(config.width, self.parts * merged, bias=config.bias, rngs=rngs)
        self.output = output(merged, config.width, bias=config.bias, rngs=rngs)

    def __call__(self, x: Stream, *, valid: Valid | None = None, taps: Taps = CLOSED) -> Stream:
        # Split, not sliced: the gradient of a split is one concatenation, that of slices a sum of padded copies.
        parts = jnp.split(self.projection(x), self.parts, axis=-1)
        heads = (part.reshape(*x.shape[:2], self._heads, self._head_dim) for part in parts)
        mixed = self.mix(*heads, valid=valid, taps=taps)
        return self.output(mixed.reshape(*x.shape[:2], -1))

    def positioned(self, query: Heads, key: Heads) -> tuple[Heads, Heads]:
        """Query and key turned by their positions where `model.position` is rotary."""
        return (rotary(query), rotary(key)) if self._rotary else (query, key)


class SoftmaxAttention(Attention):
    """Scaled dot-product attention."""

    def mix(self, query: Heads, key: Heads, value: Heads, *, valid: Valid | None, taps: Taps):
        query, key = self.positioned(query, key)
        options = {"causal": self._causal, "valid": valid}
        taps.add("weights", lambda: formulas.softmax_weights(query, key, **options))
        return softmax_attention(query, key, value, **options)


class ChannelAttention(Attention):
    """Cross-covariance attention between the features of a head, with a learned temperature a head."""

    def __init__(self, config: TransformerConfig, *, tokens: int, rngs: nnx.Rngs):
        super().__init__(config, tokens=tokens, rngs=rngs)
        self.temperature = ones((self._heads,))

    def mix(self, query: Heads, key: Heads, value: Heads, *, valid: Valid | None, taps: Taps):
        query, key = self.positioned(query, key)
        temperature = self.temperature[...]
        taps.add("channel_weights", lambda: formulas.channel_weights(query, key, temperature, valid=valid))
        return formulas.channel_attention(query, key, value, temperature, valid=valid)


class MeanAttention(Attention):
    """Every token receives the mean of the tokens that it may see; there are no queries and keys."""

    parts = 1

    def mix(self, value: Heads, *, valid: Valid | None, taps: Taps) -> Heads:
        options = {"causal": self._causal, "valid": valid}
        taps.add("weights", lambda: formulas.mean_weights(*value.shape[:2], **options))
        return formulas.mean_attention(value, **options)


class StaticAttention(Attention):
    """Learned weights a head and pair of positions, the same for every input; there are no queries and keys."""

    parts = 1

    def __init__(self, config: TransformerConfig, *, tokens: int, rngs: nnx.Rngs):
        super().__init__(config, tokens=tokens, rngs=rngs)
        self.scores = zeros((self._heads, tokens, tokens))

    def mix(self, value: Heads, *, valid: Valid | None, taps: Taps) -> Heads:
        weights = formulas.static_weights(self.scores[...], value.shape[1], causal=self._causal, valid=valid)
        taps.add("weights", lambda: weights)
        return formulas.apply_weights(weights, value)


ATTENTIONS: dict[str, type[Attention]] = {
    "softmax": SoftmaxAttention,
    "channel": ChannelAttention,
    "mean": MeanAttention,
    "static": StaticAttention,
}


def make_attention(config: TransformerConfig, *, tokens: int, rngs: nnx.Rngs) -> Attention | None:
    """The attention that `config.attention.kind` names; None where it is off."""
    kind = config.attention.kind
    return ATTENTIONS[kind](config, tokens=tokens, rngs=rngs) if kind in ATTENTIONS else None
