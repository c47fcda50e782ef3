"""Probes made of symbols: multi-query associative recall, and the six tasks of MAD, by their papers' definitions.

MQAR: Arora et al. 2023 (arXiv 2312.04927). MAD: Poli et al. 2024 (arXiv 2403.17844), with its default sizes.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.functional.linear import broadcast_parameter
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models import theory
from flaxformer_lab.models.network import Network
from flaxformer_lab.modules.projection import Dense, normal
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import (
    AssociativeRecallConfig,
    CompressionConfig,
    FuzzyRecallConfig,
    InContextRecallConfig,
    MemorizationConfig,
    NoisyRecallConfig,
    SelectiveCopyConfig,
)
from flaxformer_lab.tasks.probe import SymbolProbe
from flaxformer_lab.tasks.task import Bound

Example = tuple[Int[Array, " tokens"], Int[Array, " tokens"], Float[Array, " tokens"]]


@register("task", "associative_recall", config=AssociativeRecallConfig)
class AssociativeRecall(SymbolProbe):
    """P6, MQAR: K pairs of a key and a value open the sequence; then each key is asked once; its value is the answer.

    Keys are drawn from [1, V/2), values from [V/2, V), both without replacement. The places of the questions are
    drawn without replacement, with p proportional to i^(power - 1), i = 1, 2, ... counting every second token after
    the pairs; any other token there is random. Loss on the answers only.

    Two attention layers solve it (one copies each key beside its value, one looks the key up); one layer without
    means to look one token back cannot, and guesses among the K values: about 1 / K.
    """

    def draw(self, key: Key[Array, ""]) -> Example:
        config = self._config
        pairs, half, length = config.pairs, config.vocabulary // 2, config.sequence_length
        slots = (length - 2 * pairs) // 2
        key_key, value_key, slot_key, filler_key = jax.random.split(key, 4)
        keys = 1 + jax.random.permutation(key_key, half - 1)[:pairs]
        values = half + jax.random.permutation(value_key, config.vocabulary - half)[:pairs]
        # The largest of log p + Gumbel noise are a draw without replacement.
        log_p = (config.power - 1) * jnp.log(jnp.arange(1, slots + 1))
        chosen = jax.lax.top_k(log_p + jax.random.gumbel(slot_key, (slots,)), pairs)[1]
        places = 2 * pairs + 2 * chosen
        inputs = jax.random.randint(filler_key, (length,), 0, config.vocabulary)
        inputs = inputs.at[: 2 * pairs].set(jnp.stack([keys, values], axis=1).reshape(-1)).at[places].set(keys)
        targets = jnp.zeros((length,), jnp.int32).at[places].set(values)
        return inputs, targets, jnp.zeros((length,)).at[places].set(1.0)

    def bound(self, config: ModelConfig) -> Bound | None:
        if theory.reach(config, self._config.sequence_length) == 0:
            values = self._config.vocabulary - self._config.vocabulary // 2
            return Bound("accuracy", 1 / values, f"a key alone tells nothing of which of {values} values it was given")
        return None


@register("task", "in_context_recall", config=InContextRecallConfig)
class InContextRecall(SymbolProbe):
    """Pairs of a random key and the value that this sequence gives it; a key seen before must be answered.

    The first half of the vocabulary are keys, the second values. Each token predicts the next one; what counts is the
    value after a key that came before.
    """

    def draw(self, key: Key[Array, ""]) -> Example:
        half, length = self._config.vocabulary // 2, self._config.sequence_length
        key_key, value_key = jax.random.split(key)
        pairs = -(-(length + 1) // 2)
        keys = jax.random.randint(key_key, (pairs,), 0, half)
        values = half + jax.random.randint(value_key, (half,), 0, self._config.vocabulary - half)[keys]
        stream = jnp.stack([keys, values], axis=1).reshape(-1)
        counts = jnp.stack([_seen_before(keys), jnp.zeros((pairs,))], axis=1).reshape(-1)
        return stream[:length], stream[1 : length + 1], counts[:length]


@register("task", "noisy_recall", config=NoisyRecallConfig)
class NoisyRecall(SymbolProbe):
    """In-context recall with noise between the pairs: `noise` of all tokens, from a vocabulary of its own."""

    def draw(self, key: Key[Array, ""]) -> Example:
        config = self._config
        content, length = config.vocabulary - config.noise_vocabulary, config.sequence_length
        half = content // 2
        kind_key, key_key, value_key, noise_key = jax.random.split(key, 4)
        # A slot holds one token of noise or a pair of two tokens, so `noise` of the tokens are more of the slots.
        is_noise = jax.random.bernoulli(kind_key, 2 * config.noise / (1 + config.noise), (length + 1,))
        keys = jax.random.randint(key_key, (length + 1,), 0, half)
        values = half + jax.random.randint(value_key, (half,), 0, content - half)[keys]
        noise = content + jax.random.randint(noise_key, (length + 1,), 0, config.noise_vocabulary)
        known = _seen_before(jnp.where(is_noise, -1 - jnp.arange(length + 1), keys))
        slot, offset = _slots(jnp.where(is_noise, 1, 2), length + 1)
        stream = jnp.where(is_noise[slot], noise[slot], jnp.where(offset == 0, keys[slot], values[slot]))
        counts = known[slot] * (offset == 0)
        return stream[:length], stream[1:], counts[:length]


@register("task", "fuzzy_recall", config=FuzzyRecallConfig)
class FuzzyRecall(SymbolProbe):
    """In-context recall whose keys and values are motifs of 1 to `motif` tokens, fixed within a sequence.

    A key's motif begins with a token that names it, so that what follows is never ambiguous. Every token of the value
    of a key that came before counts.
    """

    def draw(self, key: Key[Array, ""]) -> Example:
        config = self._config
        half, longest, length = config.vocabulary // 2, config.motif, config.sequence_length
        order_key, length_key, value_length_key, rest_key, value_key = jax.random.split(key, 5)
        motifs = jax.random.randint(rest_key, (half, longest), 0, half).at[:, 0].set(jnp.arange(half))
        answers = half + jax.random.randint(value_key, (half, longest), 0, config.vocabulary - half)
        key_lengths = jax.random.randint(length_key, (half,), 1, longest + 1)
        value_lengths = jax.random.randint(value_length_key, (half,), 1, longest + 1)
        pairs = length // 2 + 1  # no pair is shorter than two tokens
        order = jax.random.randint(order_key, (pairs,), 0, half)
        pair, offset = _slots((key_lengths + value_lengths)[order], length + 1)
        name = order[pair]
        in_value = offset >= key_lengths[name]
        place = jnp.where(in_value, offset - key_lengths[name], offset)
        stream = jnp.where(in_value, answers[name, place], motifs[name, place])
        counts = _seen_before(order)[pair] * in_value
        return stream[:length], stream[1:], counts[1:]


@register("task", "selective_copy", config=SelectiveCopyConfig)
class SelectiveCopy(SymbolProbe):
    """Content tokens at random places among blanks, then as many tokens that ask: repeat the contents in order."""

    def draw(self, key: Key[Array, ""]) -> Example:
        config = self._config
        copies, length = config.copies, config.sequence_length
        blank, ask = config.vocabulary - 2, config.vocabulary - 1
        place_key, content_key = jax.random.split(key)
        places = jnp.sort(jax.random.permutation(place_key, length - copies)[:copies])
        contents = jax.random.randint(content_key, (copies,), 0, blank)
        inputs = jnp.full((length,), blank).at[places].set(contents).at[length - copies :].set(ask)
        targets = jnp.zeros((length,), jnp.int32).at[length - copies :].set(contents)
        return inputs, targets, (jnp.arange(length) >= length - copies).astype(jnp.float32)


@register("task", "compression", config=CompressionConfig)
class Compression(SymbolProbe):
    """Random tokens, the last a token that ends them: from its vector alone an MLP must decode every one of them."""

    def draw(self, key: Key[Array, ""]) -> Example:
        last, length = self._config.vocabulary - 1, self._config.sequence_length
        symbols = jax.random.randint(key, (length,), 0, last).at[-1].set(last)
        return symbols, symbols, (jnp.arange(length) < length - 1).astype(jnp.float32)

    def build_network(self, config: ModelConfig, embedding: nnx.Module, **sizes) -> Network:
        head = PositionDecoder(
            config, tokens=self._config.sequence_length, outputs=sizes["outputs"], rngs=sizes["rngs"]
        )
        return Network(config, embedding=embedding, pooling="last", head=head, **sizes)


class PositionDecoder(nnx.Module):
    """One vector becomes logits for every position: an MLP of the vector plus a learned code of the position."""

    def __init__(self, config: ModelConfig, *, tokens: int, outputs: int, rngs: Rngs):
        self._activation = ACTIVATIONS["gelu"]
        self.position = normal(rngs, (tokens, config.width), 1, (None, "width"))
        self.up = Dense(config.width, 4 * config.width, axes=("width", "hidden"), bias=config.bias, rngs=rngs)
        self.down = Dense(4 * config.width, outputs, axes=("hidden", None), bias=config.bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch tokens outputs"]:
        position = read(self.position)
        at_each = x[:, None] + broadcast_parameter(position, (x.shape[0], *position.shape), x.dtype)
        return self.down(self._activation(self.up(at_each)))


@register("task", "memorization", config=MemorizationConfig)
class Memorization(SymbolProbe):
    """Keys, each followed by a token that asks for its value; the map from keys to values never changes.

    It can only be learned from training: nothing in the sequence tells it.
    """

    def draw(self, key: Key[Array, ""]) -> Example:
        vocabulary, length = self._config.vocabulary, self._config.sequence_length
        keys_number, ask = (vocabulary - 1) // 2, vocabulary - 1
        values = jax.random.randint(jax.random.key(1), (keys_number,), keys_number, ask)
        keys = jax.random.randint(key, (-(-length // 2),), 0, keys_number)
        inputs = jnp.stack([keys, jnp.full_like(keys, ask)], axis=1).reshape(-1)[:length]
        targets = jnp.repeat(values[keys], 2)[:length]
        return inputs, targets, (inputs == ask).astype(jnp.float32)


def _seen_before(keys: Int[Array, " pairs"]) -> Float[Array, " pairs"]:
    """1 where the same key occurs further left."""
    earlier = jnp.tril(keys[:, None] == keys[None], k=-1)
    return jnp.any(earlier, axis=1).astype(jnp.float32)


def _slots(sizes: Int[Array, " slots"], length: int) -> tuple[Int[Array, "{length}"], Int[Array, "{length}"]]:
    """For each of the first `length` places of a row of slots: which slot holds it, and its offset in that slot."""
    ends = jnp.cumsum(sizes)
    slot = jnp.searchsorted(ends, jnp.arange(length), side="right")
    return slot, jnp.arange(length) - (ends - sizes)[slot]
