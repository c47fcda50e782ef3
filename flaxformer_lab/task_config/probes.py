"""Probes with continuous inputs, whose outcome theory predicts."""

from dataclasses import dataclass
from typing import Annotated, Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, AtLeastTwo, Decay, NonNegative, Positive, Rule
from flaxformer_lab.task_config.base import ShareOrNone, TaskConfig, check_distance


@dataclass(frozen=True)
class ProbeConfig(TaskConfig):
    """Probes with continuous inputs, which are drawn for every update.

    Attributes:
        embedding: the map from the input's features to model.width; `identity` needs equal numbers of both, and leaves
            all mixing of features to the model.
        head: the map from model.width to the outputs; `identity` as for the embedding.
        evaluation_examples: examples of the validation split, and of the test split.
    """

    embedding: Literal["dense", "identity"] = "dense"
    head: Literal["dense", "identity"] = "dense"
    evaluation_examples: AtLeastOne = 4096


@dataclass(frozen=True)
class ProductConfig(ProbeConfig):
    """P1, P1b: the product of a token's first `order` features.

    Attributes:
        tokens: tokens of one example.
        features: features of one token.
        order: how many features are multiplied.
    """

    name: Literal["product"] = "product"
    tokens: AtLeastOne = 4
    features: AtLeastOne = 8
    order: AtLeastTwo = 2

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.order > self.features:
            raise ConfigError(
                f"task.order={self.order} multiplies more features than task.features={self.features}; "
                "lower the one or raise the other"
            )


@dataclass(frozen=True)
class RotationConfig(ProbeConfig):
    """P2: a rotation of a token's features, a cyclic shift by one or a random one that `rotation_seed` fixes.

    Attributes:
        tokens: tokens of one example.
        features: features of one token.
        rotation: a cyclic shift by one feature, or a random rotation.
        rotation_seed: of the random rotation.
    """

    name: Literal["rotation"] = "rotation"
    tokens: AtLeastOne = 1
    features: AtLeastTwo = 32
    rotation: Literal["shift", "random"] = "shift"
    rotation_seed: NonNegative = 0


@dataclass(frozen=True)
class PointersConfig(ProbeConfig):
    """P3: a query token points at several distinct tokens, whose contents are asked for.

    Attributes:
        tokens: tokens that can be pointed at.
        features: features of one token's content.
        pointers: how many tokens the query points at.
        decay: target i is multiplied by i^(-decay / 2), so that later pointers matter less.
    """

    name: Literal["pointers"] = "pointers"
    tokens: AtLeastOne = 8
    features: AtLeastOne = 4
    pointers: AtLeastOne = 4
    decay: Decay = 0.0

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.pointers > self.tokens:
            raise ConfigError(
                f"task.pointers={self.pointers} distinct ones need at least as many tokens, but "
                f"task.tokens={self.tokens}; lower the one or raise the other"
            )


@dataclass(frozen=True)
class NearestConfig(ProbeConfig):
    """P4, P5: of several unit vectors, the one nearest to the query token's.

    Attributes:
        tokens: unit vectors to choose from.
        features: features of a vector.
        log_scale: a > 0 multiplies feature c of the input by 10^linspace(-a, a).
        standardised: divide each feature of the input by its standard deviation, as is usual for a table's columns.
    """

    name: Literal["nearest"] = "nearest"
    tokens: AtLeastTwo = 8
    features: AtLeastTwo = 8
    log_scale: Annotated[float, Rule("must be from 0 to 4", lambda value: 0 <= value <= 4)] = 0.0
    standardised: bool = False


@dataclass(frozen=True)
class ScaledLinearConfig(ProbeConfig):
    """P5b: a sum of features that arrive multiplied by `scale`.

    Attributes:
        features: features of the input.
        scale: what multiplies them.
    """

    name: Literal["scaled_linear"] = "scaled_linear"
    features: AtLeastOne = 8
    scale: Positive = 1.0


@dataclass(frozen=True)
class PlantedInteractionsConfig(ProbeConfig):
    """P8: a sum of features and of products of two, with a known share of the variance in the products.

    Attributes:
        features: features of the input.
        interaction_share: share of the target's variance that comes from products.
        coefficient_seed: of the random coefficients.
    """

    name: Literal["planted_interactions"] = "planted_interactions"
    features: AtLeastTwo = 8
    interaction_share: ShareOrNone = 0.909
    coefficient_seed: NonNegative = 0


@dataclass(frozen=True)
class DelayConfig(ProbeConfig):
    """P9: each token asks for the content of the one `distance` before it.

    Attributes:
        tokens: tokens of one example.
        features: features of one token.
        distance: how many tokens back the answer is.
    """

    name: Literal["delay"] = "delay"
    tokens: AtLeastTwo = 16
    features: AtLeastOne = 8
    distance: AtLeastOne = 1

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        check_distance(self.distance, self.tokens)


@dataclass(frozen=True)
class MarkedTokenConfig(ProbeConfig):
    """Long range: the last token asks for the content of the marked one, `distance` before it, among distractors.

    Attributes:
        tokens: tokens of one example.
        features: features of one token's content.
        distance: how many tokens before the last one the marked token is.
    """

    name: Literal["marked_token"] = "marked_token"
    tokens: AtLeastTwo = 64
    features: AtLeastOne = 4
    distance: AtLeastOne = 32

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        check_distance(self.distance, self.tokens)
