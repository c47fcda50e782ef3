"""Rows of tables: columns as tokens, and fields whose levels have vectors."""

from dataclasses import dataclass
from typing import Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, AtLeastTwo, Decay, Name, NonNegative, Positive, Seed
from flaxformer_lab.task_config.base import ShareOrNone, TaskConfig


@dataclass(frozen=True)
class TableConfig(TaskConfig):
    """Which table is read, and how its numbers are scaled.

    Attributes:
        dataset: `lab_wine`, `lab_breast_cancer`, a data set with a label and a feature of one axis of numbers, or own
            files: `csv:PATH?target=NAME`, `parquet:PATH?target=NAME`, `npz:PATH`.
        feature: which feature has the columns; none finds it: `columns`, or the only one of one axis.
        scaling: of each column of numbers, fitted to the training rows: `standard` subtracts the mean and divides by
            the standard deviation; `quantile` maps the ranks to a normal distribution; `none` leaves it as it is.
        missing: what a missing number becomes: an `error`, the `mean` of the training rows, or that with one more
            column for each that lacks values in training, which is 1 where the value is missing (`indicator`).
        log_scale: scaled columns are multiplied by powers of ten from -log_scale to log_scale, in equal steps and a
            fixed random order, so that they lie up to 10^(2 log_scale) times apart.
        split_seed: divide all rows into splits of the same sizes again, in a random order of this seed; none takes the
            data set's own splits. A small test split says little, several of them more.
    """

    RENAMED = {"standardised": ("scaling", {True: "standard", False: "none"})}

    dataset: Name = "lab_wine"
    feature: Name | None = None
    scaling: Literal["none", "standard", "quantile"] = "standard"
    missing: Literal["error", "mean", "indicator"] = "error"
    log_scale: Decay = 0.0
    split_seed: Seed | None = None


@dataclass(frozen=True)
class TabularConfig(TableConfig):
    """Tables: columns are the tokens (FT-Transformer, Gorishniy et al. 2021), or a row is a single one.

    Attributes:
        tokens: a token is a column, or the whole row (`row`): the sum of its columns' vectors, as the first layer of an
            MLP has it.
        pooling: predict from the mean of the tokens, or from a class token that is put before them.
        numbers: what a number becomes: `linear`, a direction times its value; `piecewise`, how far it lies along each
            of num_bins quantiles of training, then a linear map; `periodic`, sines and cosines of num_frequencies
            learned multiples, then a linear map and ReLU (Gorishniy et al. 2022).
        num_bins: of `piecewise`.
        num_frequencies: of `periodic`, for each column.
        frequency_scale: standard deviation of the multiples of `periodic` at the start.
        members: so many copies of each row, each with weights of its own on its features and a head of its own, go
            through one body and are trained side by side; their mean predicts (TabM, Gorishniy et al. 2024).
    """

    tokens: Literal["columns", "row"] = "columns"
    pooling: Literal["mean", "class_token"] = "mean"
    numbers: Literal["linear", "piecewise", "periodic"] = "linear"
    num_bins: AtLeastTwo = 16
    num_frequencies: AtLeastOne = 16
    frequency_scale: Positive = 0.1
    members: AtLeastOne = 1

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.tokens == "row" and self.pooling == "class_token":
            raise ConfigError(
                "task.pooling=class_token with task.tokens=row puts a token before the only one; set task.pooling=mean"
            )


@dataclass(frozen=True)
class TabularClassificationConfig(TabularConfig):
    """A row's class.

    Attributes:
        metric: what the task is judged by: `accuracy`, or of two classes `auc`, the area under the ROC curve.
        label: which feature has the label; none finds it: `label`, or the only class label or whole number.
    """

    name: Literal["tabular_classification"] = "tabular_classification"
    metric: Literal["accuracy", "auc"] = "accuracy"
    label: Name | None = None


@dataclass(frozen=True)
class TabularRegressionConfig(TabularConfig):
    """A row's number, standardised on the training rows; the loss is the squared error on that scale.

    Attributes:
        dataset: `lab_diabetes`, a file of yours (`csv:PATH?target=NAME`), or a data set with a number and a feature of
            one axis of numbers.
        target: which feature is predicted; none finds it: `target`, or the only one that is a number.
    """

    name: Literal["tabular_regression"] = "tabular_regression"
    dataset: Name = "lab_diabetes"
    target: Name | None = None


@dataclass(frozen=True)
class FieldKnobs(TaskConfig):
    """How the fields of a record become one number; the fields are the tokens.

    Attributes:
        fields: each level of a field has a vector of its own (`indexed`), or shares `buckets` of them (`hashed`).
        buckets: vectors that all fields share, where they are hashed.
        crosses: every pair of categories is one more field, hashed into so many vectors; 0 makes none.
        embedding_scale: standard deviation of the vectors at the start.
        own_weights: each level has a weight of its own in the output, beside its vector.
        readout: the output is the sum of the body's, or a weighted one of all (`flat`), or of their mean over the
            fields (`mean`).
        deep: hidden units of a perceptron beside the body, on the vectors of all fields; none leaves it out.
    """

    fields: Literal["indexed", "hashed"] = "indexed"
    buckets: AtLeastTwo = 2**14
    crosses: NonNegative = 0
    embedding_scale: Positive = 0.01
    own_weights: bool = True
    readout: Literal["sum", "flat", "mean"] = "flat"
    deep: tuple[AtLeastOne, ...] = ()


@dataclass(frozen=True)
class ClickConfig(FieldKnobs, TableConfig):
    """Whether something happens, a click or a late arrival, by the fields of a record.

    Attributes:
        dataset: `lab_flight_fields`, or any table with a label of two classes (`csv:PATH?target=NAME`).
        label: which feature has the label; none finds it: `label`, or the only class label or whole number.
    """

    name: Literal["click"] = "click"
    numbers = "linear"  # a multiple of the field's vector

    dataset: Name = "lab_flight_fields"
    label: Name | None = None


@dataclass(frozen=True)
class PlantedCrossesConfig(FieldKnobs):
    """P8 over fields: a number for each level, and one for each pair of levels of two fields, added up.

    Attributes:
        number: of fields.
        levels: of each field, all as likely.
        interaction_share: the pairs' share of the variance.
        coefficient_seed: of the numbers.
        evaluation_examples: examples of the validation split, and of the test split.
    """

    name: Literal["planted_crosses"] = "planted_crosses"
    number: AtLeastTwo = 4
    levels: AtLeastTwo = 16
    interaction_share: ShareOrNone = 0.5
    coefficient_seed: NonNegative = 0
    evaluation_examples: AtLeastOne = 4096
