"""Probes made of symbols: multi-query associative recall, and the six tasks of MAD, as their papers' code draws them.

MQAR: Arora et al. 2023 (arXiv 2312.04927). MAD: Poli et al. 2024 (arXiv 2403.17844), with its default sizes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from flaxformer_lab.errors import ConfigError
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

DEFINITION = 2  # of the sequences of MAD: raised where they change
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


class MADTask(SymbolProbe):
    """A task of MAD, drawn as its code does (github.com/athms/mad-lab, mad/data/instances.py, with multi_query).

    metadata: `definition`; runs of version 0.1, whose sequences were others, lack it.
    """

    changed: str  # since version 0.1

    def __init__(self, config: Any, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, {"definition": DEFINITION} if metadata is None else metadata)
        if self.metadata.get("definition") != DEFINITION:
            raise ConfigError(
                f"task.name={config.name}: this run learned other sequences than this version draws: {self.changed}; "
                "train it again, or open it with version 0.1"
            )


class Recall(MADTask):
    """Pairs of a key and a value, one of which may be `noise` tokens instead; the last pair repeats a key.

    Training predicts every next token; what counts in an evaluation is the value after a key that came before.
    """

    unlearned_tokens = 1  # nothing follows the last one
    changed = "the last pair repeats a key, training predicts every next token, and noise comes in pairs of tokens"

    def draw_pairs(self, key: Key[Array, ""], noise: float, noise_vocabulary: int) -> Example:
        length = self._config.sequence_length
        content, pairs = self._config.vocabulary - noise_vocabulary, length // 2
        half = content // 2
        kind_key, kept_key, key_key, value_key, noise_key, last_key = jax.random.split(key, 6)
        is_noise = jax.random.bernoulli(kind_key, noise, (pairs,)).at[-1].set(False)
        is_noise = is_noise.at[jax.random.randint(kept_key, (), 0, pairs)].set(False)
        keys = jax.random.randint(key_key, (pairs,), 0, half)
        shown = jnp.zeros((half,), bool).at[jnp.where(is_noise, half, keys)[:-1]].set(True, mode="drop")
        keys = keys.at[-1].set(jax.random.categorical(last_key, jnp.where(shown, 0.0, -jnp.inf)))
        values = half + jax.random.randint(value_key, (half,), 0, content - half)[keys]
        tokens = content + jax.random.randint(noise_key, (pairs, 2), 0, max(noise_vocabulary, 1))
        tokens = jnp.where(is_noise[:, None], tokens, jnp.stack([keys, values], axis=1)).reshape(-1)
        known = _seen_before(jnp.where(is_noise, -1 - jnp.arange(pairs), keys))
        return tokens, jnp.append(tokens[1:], 0), jnp.stack([known, jnp.zeros((pairs,))], axis=1).reshape(-1)


@register("task", "in_context_recall", config=InContextRecallConfig)
class InContextRecall(Recall):
    """Each sequence gives random keys, the first half of the vocabulary, values of the second half."""

    def draw(self, key: Key[Array, ""]) -> Example:
        return self.draw_pairs(key, 0.0, 0)


@register("task", "noisy_recall", config=NoisyRecallConfig)
class NoisyRecall(Recall):
    """In-context recall with `noise` of the pairs replaced by two tokens of a vocabulary of their own."""

    def draw(self, key: Key[Array, ""]) -> Example:
        return self.draw_pairs(key, self._config.noise, self._config.noise_vocabulary)


@register("task", "fuzzy_recall", config=FuzzyRecallConfig)
class FuzzyRecall(MADTask):
    """In-context recall whose keys and values are motifs, permutations of 1 to `motif` tokens of their vocabulary.

    In training a key has any of these sizes, in an evaluation the largest. A motif may begin as another one does. The
    sequence ends with a key that came before; the left is padded with a token of its own. Training predicts every next
    token; what counts in an evaluation are the values of keys that came before.
    """

    unlearned_tokens = 0
    changed = "keys are permutations that may begin alike, evaluation asks the longest alone, and training predicts all"

    def draw(self, key: Key[Array, ""]) -> Example:
        return self.draw_of_split(key, jnp.zeros((), bool))

    def draw_of_split(self, key: Key[Array, ""], is_training: Bool[Array, ""]) -> Example:
        config = self._config
        longest, length, pad = config.motif, config.sequence_length, config.vocabulary - 1
        half, pairs = pad // 2, length // 2 + 2  # the first pair is the one that is asked at the end
        size_key, key_key, value_size_key, value_key, place_key = jax.random.split(key, 5)
        sizes = jnp.where(is_training, jax.random.randint(size_key, (pairs,), 1, longest + 1), longest)
        keys = _permutations(key_key, pairs, half, sizes, longest)
        value_sizes = jax.random.randint(value_size_key, (pairs,), 1, longest + 1)
        values = half + _permutations(value_key, pairs, pad - half, value_sizes, longest)
        asked = sizes[0] + value_sizes[0]
        # Uniform below `length - 2 * asked`, which depends on a draw.
        place = jnp.floor(jax.random.uniform(place_key) * (length - 2 * asked)).astype(jnp.int32)
        room = length - asked - 2 * longest

        def step(state: tuple[Array, ...], number: Int[Array, ""]) -> tuple[tuple[Array, ...], None]:
            """Adds a pair while there is room: the asked one from `place` on, if its key did not come by itself."""
            owners, used, has_asked = state
            is_open = used < room
            inserts = ~has_asked & (used >= place)
            owner = jnp.where(inserts, 0, first[number])
            owners = owners.at[number].set(jnp.where(is_open, owner, -1))
            used += jnp.where(is_open, sizes[owner] + value_sizes[owner], 0)
            return (owners, used, has_asked | (is_open & (owner == 0))), None

        # A pair with the key of an earlier one has its value; it does not matter whether that one was used.
        same = jnp.all(keys[:, None] == keys[None], axis=-1)
        first = jnp.argmax(same, axis=1)
        start = (jnp.full((pairs + 1,), -1), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        (owners, _, _), _ = jax.lax.scan(step, start, jnp.arange(1, pairs))
        owners = owners[1:].at[jnp.sum(owners >= 0)].set(0)
        is_used = owners >= 0
        widths = jnp.where(is_used, sizes[owners] + value_sizes[owners], 0)
        known = _seen_before(jnp.where(is_used, owners, -1 - jnp.arange(pairs)))
        known = known.at[jnp.sum(is_used) - 1].set(1)
        missing = length + 1 - jnp.sum(widths)
        pair, offset = _slots(jnp.concatenate([missing[None], widths]), length + 1)
        owner, is_pad = owners[pair - 1], pair == 0
        place_in_value = offset - sizes[owner]
        tokens = jnp.where(place_in_value >= 0, values[owner, jnp.maximum(place_in_value, 0)], keys[owner, offset])
        tokens = jnp.where(is_pad, pad, tokens)
        counts = jnp.where(is_pad, 0, known[pair - 1]) * (place_in_value >= 0)
        return tokens[:length], tokens[1:], counts[1:]


def _permutations(
    key: Key[Array, ""], number: int, vocabulary: int, sizes: Int[Array, " number"], longest: int
) -> Int[Array, "number {longest}"]:
    """Rows of different tokens, each order as likely as another, -1 beyond each row's size."""
    order = jax.lax.top_k(jax.random.uniform(key, (number, vocabulary)), longest)[1]
    return jnp.where(jnp.arange(longest)[None] < sizes[:, None], order, -1)


@register("task", "selective_copy", config=SelectiveCopyConfig)
class SelectiveCopy(MADTask):
    """Content tokens between blanks, a token that asks, then blanks, at which the contents are repeated in order.

    Each blank stands before any of the contents, one as likely as another.
    """

    changed = "one token asks before blanks, and blanks fall before each content alike"

    def draw(self, key: Key[Array, ""]) -> Example:
        config = self._config
        copies, length = config.copies, config.sequence_length
        blank, ask, reading = config.vocabulary - 2, config.vocabulary - 1, length - copies
        place_key, content_key = jax.random.split(key)
        before = jax.random.randint(place_key, (reading - copies - 1,), 0, copies)
        places = jnp.arange(copies) + jnp.cumsum(jnp.bincount(before, length=copies))
        contents = jax.random.randint(content_key, (copies,), 0, blank)
        inputs = jnp.full((length,), blank).at[places].set(contents).at[reading - 1].set(ask)
        targets = jnp.zeros((length,), jnp.int32).at[reading:].set(contents)
        return inputs, targets, (jnp.arange(length) >= reading).astype(jnp.float32)


@register("task", "compression", config=CompressionConfig)
class Compression(MADTask):
    """Random tokens, the last a token that ends them: from its vector alone an MLP must decode every one of them."""

    changed = "the last token counts, too"

    def draw(self, key: Key[Array, ""]) -> Example:
        last, length = self._config.vocabulary - 1, self._config.sequence_length
        symbols = jax.random.randint(key, (length,), 0, last).at[-1].set(last)
        return symbols, symbols, jnp.ones((length,))

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
class Memorization(MADTask):
    """Keys, each followed by a token that asks for its value; the map from keys to values never changes.

    No two keys have the same value. The map can only be learned from training: nothing in the sequence tells it.
    """

    changed = "no two keys have the same value"

    def draw(self, key: Key[Array, ""]) -> Example:
        vocabulary, length = self._config.vocabulary, self._config.sequence_length
        keys_number, ask = (vocabulary - 1) // 2, vocabulary - 1
        values = keys_number + jax.random.permutation(jax.random.key(1), ask - keys_number)[:keys_number]
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
