"""Texts, and models that learned from texts elsewhere."""

from dataclasses import dataclass
from typing import Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, AtLeastTwo, Fraction, Name
from flaxformer_lab.task_config.base import TaskConfig


@dataclass(frozen=True)
class LanguageModellingConfig(TaskConfig):
    """Characters or bytes are the tokens; the next one, or the masked ones (BERT), are predicted.

    Attributes:
        dataset: a `lab_*` data set, one of tensorflow-datasets with text, or own files: `text:PATH`, a file or a folder
            of `.txt`.
        feature: which feature has the text; none finds it: `text`, or the only one that is a text.
        tokenizer: one symbol per character of the training text, or per byte.
        objective: predict the next token, or tokens that are masked.
        sequence_length: tokens of one example.
        mask_rate: share of the tokens that `masked` hides.
    """

    name: Literal["language_modelling"] = "language_modelling"
    dataset: Name = "lab_speeches"
    feature: Name | None = None
    tokenizer: Literal["characters", "bytes"] = "characters"
    objective: Literal["next_token", "masked"] = "next_token"
    sequence_length: AtLeastOne = 128
    mask_rate: Fraction = 0.15

    @property
    def causal(self) -> bool:
        """A next token must not be seen; a masked one is guessed from both sides."""
        return self.objective == "next_token"


@dataclass(frozen=True)
class PretrainedConfig(TaskConfig):
    """What a pretrained model was made for, by its head (docs/pretrained.md).

    Attributes:
        folder: of the model, as the Hugging Face hub has it.
        dataset: what it is evaluated and trained on: text, for a language model; images, for their classes; or
            `tsv:PATH`, a file of lines `text<TAB>text<TAB>rating` for sentence embeddings and `text<TAB>class` for
            classes of texts, or a folder with train.tsv, validation.tsv and test.tsv. None means lab_speeches for a
            language model.
        feature: which feature has the text or the image; none finds it.
        label: which feature has the class of an image; none finds it.
        sequence_length: tokens of one example; none means what the model was made for, at most 128.
        mask_rate: share of the tokens that a model of masked tokens must guess.
        ratings: the lowest and the highest rating; cosines are compared with the rating as a share of this range.
        classes: outputs of a new head, where the pretrained one has others; none keeps it.
    """

    name: Literal["pretrained"] = "pretrained"
    folder: Name = "."
    dataset: Name | None = None
    feature: Name | None = None
    label: Name | None = None
    sequence_length: AtLeastTwo | None = None
    mask_rate: Fraction = 0.15
    ratings: tuple[float, ...] = (0.0, 10.0)
    classes: AtLeastOne | None = None

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if len(self.ratings) != 2 or self.ratings[0] >= self.ratings[1]:
            raise ConfigError(
                f"task.ratings={','.join(map(str, self.ratings))} must be two numbers, the lower one first, like 0,10"
            )
