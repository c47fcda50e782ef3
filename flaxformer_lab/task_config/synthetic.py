"""Probes made of symbols."""

from dataclasses import dataclass
from typing import Annotated, Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, AtLeastTwo, Rate, Rule
from flaxformer_lab.task_config.base import TaskConfig


@dataclass(frozen=True)
class SyntheticConfig(TaskConfig):
    """Probes made of symbols.

    Attributes:
        training_examples: how many different examples the training split has; none draws new ones for every update.
        evaluation_examples: examples of the validation split, and of the test split.
    """

    training_examples: AtLeastOne | None = 12800
    evaluation_examples: AtLeastOne = 1280


@dataclass(frozen=True)
class AssociativeRecallConfig(SyntheticConfig):
    """P6, MQAR (Arora et al. 2023): key-value pairs, then each key again at a random place, asking for its value.

    Attributes:
        vocabulary: symbols; half are keys and half are values.
        sequence_length: tokens of one example.
        pairs: key-value pairs in one example.
        power: exponent of the power law that places the questions (1 is uniform).
    """

    name: Literal["associative_recall"] = "associative_recall"
    training_examples: AtLeastOne | None = None
    vocabulary: AtLeastTwo = 64
    sequence_length: AtLeastTwo = 32
    pairs: AtLeastOne = 4
    power: Annotated[float, Rule("must be above 0 and at most 1", lambda value: 0 < value <= 1)] = 0.01

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if 4 * self.pairs > self.sequence_length:
            raise ConfigError(
                f"task.pairs={self.pairs} need {4 * self.pairs} tokens (two for a pair, two for a question), but "
                f"task.sequence_length={self.sequence_length}; lower the one or raise the other"
            )
        keys = self.vocabulary // 2 - 1
        if self.pairs > keys:
            raise ConfigError(
                f"task.pairs={self.pairs} distinct keys do not fit the {keys} of task.vocabulary={self.vocabulary}; "
                f"choose a vocabulary of at least {2 * self.pairs + 2}"
            )


PairsOfTokens = Annotated[int, Rule("must be even and at least 4", lambda value: value >= 4 and value % 2 == 0)]


@dataclass(frozen=True)
class InContextRecallConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): pairs of a key and a value; a key that was seen before must give its value again.

    Attributes:
        vocabulary: symbols; half are keys and half are values.
        sequence_length: tokens of one example.
    """

    name: Literal["in_context_recall"] = "in_context_recall"
    vocabulary: Annotated[int, Rule("must be at least 4", lambda value: value >= 4)] = 16
    sequence_length: PairsOfTokens = 128

    causal = True


@dataclass(frozen=True)
class FuzzyRecallConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): in-context recall whose keys and values are motifs of 1 to `motif` tokens.

    Attributes:
        vocabulary: symbols; the last one pads, half of the others are of keys and half of values.
        sequence_length: tokens of one example.
        motif: largest number of tokens in a key or value.
    """

    name: Literal["fuzzy_recall"] = "fuzzy_recall"
    vocabulary: Annotated[int, Rule("must be at least 4", lambda value: value >= 4)] = 16
    sequence_length: AtLeastTwo = 128
    motif: AtLeastOne = 3

    causal = True

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        tokens = (self.vocabulary - 1) // 2
        if self.motif > tokens:
            raise ConfigError(
                f"task.motif={self.motif} different tokens do not fit the {tokens} that task.vocabulary="
                f"{self.vocabulary} has for keys; choose a vocabulary of at least {2 * self.motif + 1}"
            )
        if self.sequence_length <= 4 * self.motif:
            raise ConfigError(
                f"task.sequence_length={self.sequence_length} leaves no room for two pairs of task.motif={self.motif}; "
                f"choose at least {4 * self.motif + 1}"
            )


@dataclass(frozen=True)
class NoisyRecallConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): in-context recall with noise in place of some of the pairs.

    Attributes:
        vocabulary: symbols, those of the noise included.
        noise_vocabulary: symbols of the noise.
        noise: share of the pairs that are noise.
        sequence_length: tokens of one example.
    """

    name: Literal["noisy_recall"] = "noisy_recall"
    vocabulary: AtLeastTwo = 32
    noise_vocabulary: AtLeastOne = 16
    noise: Rate = 0.2
    sequence_length: PairsOfTokens = 128

    causal = True

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.vocabulary - self.noise_vocabulary < 4:
            raise ConfigError(
                f"task.vocabulary={self.vocabulary} counts task.noise_vocabulary={self.noise_vocabulary} and leaves "
                f"fewer than 4 symbols for keys and values; choose at least {self.noise_vocabulary + 4}"
            )


@dataclass(frozen=True)
class SelectiveCopyConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): repeat the content tokens in order, skipping the blanks between them.

    Attributes:
        vocabulary: symbols.
        sequence_length: tokens of one example.
        copies: how many content tokens are copied.
    """

    name: Literal["selective_copy"] = "selective_copy"
    vocabulary: Annotated[int, Rule("must be at least 3", lambda value: value >= 3)] = 16
    sequence_length: AtLeastTwo = 256
    copies: AtLeastOne = 16

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        least = 2 * self.copies + 2
        if least > self.sequence_length:
            raise ConfigError(
                f"task.copies={self.copies} need {least} tokens (one to read, one to write, a blank and one that "
                f"asks), but task.sequence_length={self.sequence_length}; lower the one or raise the other"
            )


@dataclass(frozen=True)
class CompressionConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): squeeze the sequence into its last token, from which an MLP decodes every position.

    Attributes:
        vocabulary: symbols.
        sequence_length: tokens of one example.
    """

    name: Literal["compression"] = "compression"
    vocabulary: AtLeastTwo = 16
    sequence_length: AtLeastTwo = 32


@dataclass(frozen=True)
class MemorizationConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): a fixed map from keys to values, learned in training and not from the context.

    Attributes:
        vocabulary: symbols.
        sequence_length: tokens of one example.
    """

    name: Literal["memorization"] = "memorization"
    training_examples: AtLeastOne | None = 256
    vocabulary: Annotated[int, Rule("must be at least 3", lambda value: value >= 3)] = 256
    sequence_length: AtLeastTwo = 32
