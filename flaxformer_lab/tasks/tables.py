"""Rows of a table, with a class or a number each: columns of numbers and of categories are the tokens."""

import abc
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.columns import Choices, Column, Table, column_of, decimal_marks, numbers_of
from flaxformer_lab.data.own.contents import SOURCE_ROW
from flaxformer_lab.data.own.schema import Schema, table_of
from flaxformer_lab.data.own.tables import class_name
from flaxformer_lab.data.source import Source, open_split, open_split_again
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional import metrics
from flaxformer_lab.functional.losses import absolute_error, cross_entropy, squared_error
from flaxformer_lab.functional.metrics import Metrics, RootMean, RSquared
from flaxformer_lab.functional.quantiles import fit_quantiles, to_normal
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.embedding import ColumnEmbedding, RowEmbedding
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.table_embedding import MemberHead, PeriodicEmbedding, PiecewiseEmbedding, TableTokens
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import TabularClassificationConfig, TabularConfig, TabularRegressionConfig
from flaxformer_lab.tasks.examples import CHECKED_BYTES, Arrays, Examples, stored_examples
from flaxformer_lab.tasks.features import (
    check_labels,
    class_names,
    class_numbers,
    classes_of,
    content_of,
    facts_of_classes,
    find_feature,
    find_number,
    is_label,
    is_row,
    require_classes,
    warn_of_change,
)
from flaxformer_lab.tasks.task import ACCURACY, AUC, R_SQUARED, Batch, Keys, PrimaryMetric, Task, loss_and_accuracy

COLUMNS, CATEGORIES = "columns", "categories"


class Tabular(Task):
    """A column has a direction of its own, a category's level a vector (Gorishniy et al. 2021, FT-Transformer).

    The inputs are the numbers [batch, columns]; of a table with categories a mapping that has those too.
    metadata: `feature`, the name of the columns (None where there are only categories); `mean` and `spread` of the
    columns in training; `quantiles` where the scaling needs them; `edges`, of the bins of raw columns; `lacking`, the
    columns that have an indicator; `table`, the schema of a table whose columns have names, its `target_column`, and
    `notes` on it.
    """

    units = ("rows", 1)
    is_regression = False
    outputs: int
    _config: TabularConfig

    def __init__(self, config: Any, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = self._read_metadata() if metadata is None else metadata
        self._feature = self.metadata.get("feature", COLUMNS)
        self._schema = _schema_of(self.metadata)

    def _read_metadata(self) -> dict[str, Any]:
        source = self._open("train")
        own = source.info.metadata or {}
        self._schema = _schema_of(own)
        if self._schema is None:
            self._feature = find_feature(source, self._config, "feature", COLUMNS, is_row)
        else:
            self._feature = COLUMNS if self._schema.numbers else None
        arrays = source.load()
        kept = {key: own[key] for key in ("table", "target_column", "notes") if key in own}
        kept |= {"feature": self._feature} | content_of(source)
        return kept | self._read_target(source, arrays) | self._read_columns(source, arrays)

    def _open(self, split: str) -> Source:
        dataset, seed = self._config.dataset, self._config.split_seed
        if seed is None:
            return open_split(dataset, split)
        if parse_address(dataset):
            raise ConfigError(
                f"task.split_seed={seed} with task.dataset={dataset}: a file of yours is divided as its address says, "
                "and the levels of its categories are those of its training rows; write split= there, and set "
                "task.split_seed=none"
            )
        return open_split_again(dataset, split, seed)

    def _read_columns(self, source: Source, arrays: Arrays) -> dict[str, Any]:
        """What is fitted to the numbers of the training rows."""
        if self._feature is None:
            return {"mean": [], "spread": []}
        columns = arrays[self._feature].astype(np.float64)
        self._check_columns(source.name, columns, arrays.get(SOURCE_ROW, np.arange(len(columns))))
        missing = np.isnan(columns)
        for column in np.flatnonzero(missing.all(axis=0))[:1]:
            raise DataError(f"{source.name}: {self._name(int(column))} has no value in any row; leave the column out")
        mean, spread = np.nanmean(columns, axis=0), np.nanstd(columns, axis=0)
        fitted = {"mean": mean.tolist(), "spread": np.where(spread > 0, spread, 1.0).tolist()}
        if self._config.scaling == "quantile":
            fitted["quantiles"] = fit_quantiles(columns).T.tolist()
        if self._config.numbers == "piecewise":
            shares = np.linspace(0, 1, self._config.num_bins + 1)
            fitted["edges"] = np.nanquantile(columns, shares, axis=0).T.tolist()
        if self._config.missing == "indicator" and missing.any():
            fitted["lacking"] = np.flatnonzero(missing.any(axis=0)).tolist()
        return fitted

    # ------------------------------------------------------------------------------------------- the target

    @abc.abstractmethod
    def _read_target(self, source: Source, arrays: Arrays) -> dict[str, Any]:
        """The name of the feature that is predicted, and what must be known of it; arrays: of the training rows."""

    @abc.abstractmethod
    def _check_target(self, name: str, arrays: Arrays, rows: np.ndarray) -> None:
        """Raises DataError where a target cannot be learned. name: of the split."""

    @abc.abstractmethod
    def _targets(self, examples: Batch) -> Array:
        """What the loss compares with."""

    # -------------------------------------------------------------------------------------------- the inputs

    @property
    def _lacking(self) -> list[int]:
        return self.metadata.get("lacking", [])

    @property
    def _num_columns(self) -> int:
        return len(self.metadata["mean"]) + len(self._lacking)

    @property
    def levels(self) -> tuple[int, ...]:
        """How many levels each category has, the one of unknown values included."""
        return tuple(len(category.levels) for category in self._schema.categories) if self._schema else ()

    def _name(self, column: int) -> str:
        return f"column {self._schema.numbers[column].name}" if self._schema else f"{self._feature}[{column}]"

    def examples(self, split: str) -> Examples:
        source = self._open(split)
        warn_of_change(source, self.metadata)
        self._require_meanings(source)
        return stored_examples(source, functools.partial(self._check_examples, source.name))

    def _require_meanings(self, source: Source) -> None:
        """Raises DataError where own files changed so that columns or levels are others now."""
        now = _schema_of(source.info.metadata or {})
        if self._schema and now and now.meanings != self._schema.meanings:
            raise DataError(
                f"{source.name}: the file changed since this run began, and its columns or the levels of categories "
                "are others now; restore it, or begin a new run"
            )

    def _check_examples(self, name: str, arrays: Arrays, rows: Any) -> None:
        rows = arrays.get(SOURCE_ROW, rows)
        self._check_target(name, arrays, rows)
        if self._feature is not None:
            self._check_columns(name, arrays[self._feature], rows)

    def _check_columns(self, name: str, values: np.ndarray, rows: np.ndarray, *, trained: bool = False) -> None:
        """Raises DataError where a number cannot be used. trained: whether `task.missing` can no longer be changed."""
        bad = np.isinf(values) if self._config.missing != "error" else ~np.isfinite(values)
        for place, column in np.argwhere(bad)[:1]:
            value = values[place, column]
            way_out = "; correct it"
            if np.isnan(value) and trained:
                way_out = ", and the model was trained with task.missing=error; fill it in, or leave the row out"
            elif np.isnan(value):
                way_out = "; set task.missing=mean or indicator, or correct it"
            where = f"{self._name(int(column))} of {'line' if self._schema else 'row'} {rows[place]}"
            what = "missing" if self._schema and np.isnan(value) else value
            raise DataError(f"{name}: {where} is {what}{way_out}")

    def facts(self) -> list[list[Any]]:
        columns = f"{len(self.metadata['mean'])} columns, {_SCALED[self._config.scaling]}"
        added = f", {len(self._lacking)} indicators of missing values" if self._lacking else ""
        rows = [["data set", self._config.dataset], [self._feature or COLUMNS, columns + added]]
        if self._schema:
            kinds: dict[str, list[str]] = {}
            for column in self._schema.columns:
                kinds.setdefault(column.kind, []).append(column.name)
            rows += [[f"of kind {kind}", ", ".join(names)] for kind, names in kinds.items()]
            levels = (f"{each.name} ({len(each.levels)})" for each in self._schema.categories)
            rows += [[CATEGORIES, f"with their levels: {', '.join(levels)}"]] if self.levels else []
        return rows + [["note", note] for note in self.metadata.get("notes", ())]

    def inputs_of(self, raw: Any) -> Any:
        if self._schema:
            columns, categories = self._schema.encode(table := table_of(raw, parse_address(self._config.dataset)))
            self._check_columns(table.path, columns, table.lines, trained=True)
            return self.preprocess({COLUMNS: jnp.asarray(columns), CATEGORIES: jnp.asarray(categories)})
        if isinstance(raw, Mapping):
            if self._feature not in raw:
                raise ConfigError(f"predict: the examples lack {self._feature!r}; they have {', '.join(map(str, raw))}")
            raw = raw[self._feature]
        values, wanted = np.asarray(raw), len(self.metadata["mean"])
        if values.shape[1:] != (wanted,) or values.dtype.kind not in "biuf":
            raise ConfigError(
                f"predict: rows of shape {values.shape} ({values.dtype}) do not fit this model, which takes (batch, "
                f"{wanted}) numbers"
            )
        self._check_columns("predict", values, np.arange(len(values)), trained=True)
        return self.preprocess({self._feature: jnp.asarray(values)})

    @property
    def takes_rows(self) -> bool:
        """Whether rows of a CSV file can be scored: the columns have names."""
        return self._schema is not None

    def targets_in(self, table: Table) -> np.ndarray | None:
        """The prepared targets of new rows; None where the table has not that column.

        Raises:
            DataError: a value is missing, or is none that training knows.
        """
        name = self.metadata["target_column"]
        if name not in table.columns:
            return None
        for row in [row for row, value in enumerate(table.columns[name]) if value is None][:1]:
            raise table.error(name, row, "it has no value; leave the row out, or the column")
        return self._read_targets(table, name)

    @abc.abstractmethod
    def _read_targets(self, table: Table, name: str) -> np.ndarray:
        """The prepared targets of a column of texts or of Python's own values, of which none is missing."""

    @abc.abstractmethod
    def scores_of(self, predictions: np.ndarray) -> dict[str, list]:
        """What is written of each row's prediction, by the name of its column."""

    def raw_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (batch_size, len(self.metadata["mean"]))
        columns = {} if self._feature is None else {self._feature: jax.ShapeDtypeStruct(shape, jnp.float32)}
        levels = jax.ShapeDtypeStruct((batch_size, len(self.levels)), jnp.int32)
        return columns | ({CATEGORIES: levels} if self.levels else {})

    def network(self, config: ModelConfig) -> PureNetwork:
        own, levels = self._config, self.levels
        edges = self._edges()
        arranged = {"as_row": own.tokens == "row", "has_class_token": own.pooling == "class_token"}

        def embedding_of(rngs: Rngs) -> nnx.Module:
            arguments = {"width": config.width, "dtype": config.dtype, "rngs": rngs}
            numbers = None
            if self._num_columns and own.numbers == "piecewise":
                numbers = PiecewiseEmbedding(edges, **arguments)
            elif self._num_columns and own.numbers == "periodic":
                waves = own.num_frequencies, own.frequency_scale
                numbers = PeriodicEmbedding(self._num_columns, *waves, **arguments)
            elif self._num_columns:
                numbers = ColumnEmbedding(self._num_columns, **arguments)
            parts = RowEmbedding(numbers, levels, **arguments) if levels else numbers
            if not any(arranged.values()) and own.members == 1:
                return parts
            return TableTokens(parts, **arranged, members=own.members, width=config.width, rngs=rngs)

        def build(rngs: Rngs) -> Network:
            embedding, head = embedding_of(rngs), None
            if own.members > 1:
                head = MemberHead(own.members, config.width, self.outputs, bias=config.bias, rngs=rngs)
            tokens = 1 if arranged["as_row"] else self._num_columns + len(levels)
            grid, outputs = (tokens + arranged["has_class_token"],), {"outputs": self.outputs, "head": head}
            return Network(config, embedding=embedding, grid=grid, pooling=own.pooling, **outputs, rngs=rngs)

        return functionalize(build)

    def _edges(self) -> np.ndarray | None:
        """The edges of the bins of each column that the network is given; of an indicator, those between 0 and 1."""
        if "edges" not in self.metadata:
            return None
        with jax.ensure_compile_time_eval():
            scaled = np.asarray(self._scaled(jnp.asarray(np.array(self.metadata["edges"], np.float32).T)))
        indicators = np.linspace(0, 1, len(scaled))[:, None].repeat(len(self._lacking), axis=1)
        return np.concatenate([np.sort(scaled, axis=0), indicators], axis=1).T

    def _scaled(self, columns: Float[Array, "batch columns"]) -> Float[Array, "batch columns"]:
        """Numbers as the scaling wants them; none is missing."""
        mean, spread = (jnp.asarray(self.metadata[name], jnp.float32)[None] for name in ("mean", "spread"))
        if self._config.scaling == "standard":
            columns = (columns - mean) / spread
        elif self._config.scaling == "quantile":
            columns = to_normal(columns, jnp.asarray(self.metadata["quantiles"], jnp.float32).T)
        if self._config.log_scale:
            number, most = len(self.metadata["mean"]), self._config.log_scale
            exponents = np.random.Generator(np.random.Philox(key=1)).permutation(np.linspace(-most, most, number))
            columns = columns * jnp.asarray(10**exponents, jnp.float32)[None]
        return columns

    def prepare(self, examples: Batch, keys: Keys, *, training: bool) -> Batch:
        del keys, training
        return {
            "inputs": self.preprocess(examples),
            "targets": self._targets(examples),
            "loss_weights": examples["example_weight"],
        }

    def preprocess(self, features: Batch) -> Any:
        """Numbers that are filled and scaled, and the categories beside them where there are any."""
        columns = None
        if self._feature is not None:
            columns = features[self._feature].astype(jnp.float32)
            mean, missing = jnp.asarray(self.metadata["mean"], jnp.float32)[None], jnp.isnan(columns)
            columns = jnp.where(missing, mean, columns) if self._config.missing != "error" else columns
            columns = self._scaled(columns)
            if self._lacking:
                columns = jnp.concatenate([columns, missing[:, np.array(self._lacking)].astype(jnp.float32)], axis=1)
        if not self.levels:
            return columns
        inputs = {} if columns is None else {COLUMNS: columns}
        return inputs | {CATEGORIES: features[CATEGORIES].astype(jnp.int32)}

    def input_spec(self, batch_size: int) -> Any:
        columns = jax.ShapeDtypeStruct((batch_size, self._num_columns), jnp.float32)
        if not self.levels:
            return columns
        inputs = {} if self._feature is None else {COLUMNS: columns}
        return inputs | {CATEGORIES: jax.ShapeDtypeStruct((batch_size, len(self.levels)), jnp.int32)}


@register("task", "tabular_classification", config=TabularClassificationConfig)
class TabularClassification(Tabular):
    """metadata: also `label`, the name of the feature, `num_classes` and `classes` as in `classes_of`."""

    primary_metric = ACCURACY
    _config: TabularClassificationConfig

    def __init__(self, config: TabularClassificationConfig, metadata: Mapping[str, Any] | None = None):
        super().__init__(config, metadata)
        self.primary_metric = self.primary_metric_of(config)
        if config.metric == "auc" and self.outputs != 2:
            raise ConfigError(
                f"task.metric=auc needs two classes, and {config.dataset} has {self.outputs}; set task.metric=accuracy"
            )

    def examples(self, split: str) -> Examples:
        examples = super().examples(split)
        needs_both = split == "train" or self.primary_metric is AUC
        if needs_both and examples.num_bytes <= CHECKED_BYTES:
            labels = examples.load()[self._label]
            if (labels == labels[0]).all():
                name = self.class_names()[int(class_numbers(self.metadata, jnp.asarray(labels[:1]))[0])]
                wanted = "something to learn" if split == "train" else "both, for task.metric=auc"
                raise DataError(
                    f"{self._config.dataset}: all rows of {split} are {name}, and it needs {wanted}; divide "
                    "the rows in another way"
                )
        return examples

    @classmethod
    def primary_metric_of(cls, config: TabularClassificationConfig) -> PrimaryMetric:
        return AUC if config.metric == "auc" else cls.primary_metric

    def _require_meanings(self, source: Source) -> None:
        super()._require_meanings(source)
        require_classes(source, source.info.features[self._label], self.metadata)

    @property
    def _label(self) -> str:
        return self.metadata.get("label", "label")

    @property
    def outputs(self) -> int:
        return self.metadata["num_classes"]

    def _read_target(self, source: Source, arrays: Arrays) -> dict[str, Any]:
        if self._schema and "label" not in source.features:
            raise ConfigError(
                f"task.dataset={self._config.dataset}: {source.info.metadata['target_column']} is a number of many "
                "values, no class; set task.name=tabular_regression, or name another target"
            )
        label = find_feature(source, self._config, "label", "label", is_label)
        return {"label": label} | classes_of(source, label)

    def _check_target(self, name: str, arrays: Arrays, rows: np.ndarray) -> None:
        check_labels(name, self._label, self.metadata, arrays[self._label], rows)

    def class_names(self) -> list[str]:
        return class_names(self.metadata)

    def _read_targets(self, table: Table, name: str) -> np.ndarray:
        code = {each: number for number, each in enumerate(self.class_names())}
        target = self._schema.target or Column(name, "category")
        found = np.empty(len(table), np.int32)
        for row, value in enumerate(table.columns[name]):
            text = class_name(value, target)
            number = code.get(text, code.get(text.lower()))
            if number is None:
                raise table.error(name, row, f"{value!r} is none of the classes {', '.join(list(code)[:10])}")
            found[row] = number
        return found

    def scores_of(self, predictions: np.ndarray) -> dict[str, list]:
        names, shares = self.class_names(), np.asarray(jax.nn.softmax(predictions))
        target = self.metadata.get("target_column", self._label)
        best = {f"predicted {target}": [names[number] for number in shares.argmax(axis=1)]}
        return best | {f"probability of {name}": shares[:, number].tolist() for number, name in enumerate(names)}

    def _targets(self, examples: Batch) -> Int[Array, " batch"]:
        return class_numbers(self.metadata, examples[self._label])

    def facts(self) -> list[list[Any]]:
        data, *rows = super().facts()
        return [data, facts_of_classes(self.metadata.get("target_column", self._label), self.metadata), *rows]

    def predictions_of(self, outputs: Float[Array, "batch *members classes"]) -> Float[Array, "batch classes"]:
        if outputs.ndim == 2:
            return outputs
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=1) - jnp.log(jnp.float32(outputs.shape[1]))

    def loss_and_metrics(self, outputs: Float[Array, "batch *members classes"], batch: Batch) -> Metrics:
        """The loss is the mean of the members'; everything else is of their mean probabilities."""
        logits = self.predictions_of(outputs)
        found = loss_and_accuracy(logits, batch)
        if outputs.ndim == 3:
            found["loss"] = cross_entropy(outputs, *_for_members(outputs, batch))
        if self.primary_metric is AUC:
            scores = logits[:, 1] - logits[:, 0]
            found["auc"] = metrics.AUC(scores, batch["targets"], batch["loss_weights"])
        return found


@register("task", "tabular_regression", config=TabularRegressionConfig)
class TabularRegression(Tabular):
    """The loss and R2 are those of standardised targets, the root mean square and mean absolute errors of raw ones.

    metadata: also `target`, the name of the feature, and its `target_mean` and `target_spread` in training.
    """

    primary_metric = R_SQUARED
    is_regression = True
    outputs = 1
    _config: TabularRegressionConfig

    def _read_target(self, source: Source, arrays: Arrays) -> dict[str, Any]:
        if self._schema and "target" not in source.features:
            raise ConfigError(
                f"task.dataset={self._config.dataset}: {source.info.metadata['target_column']} is a class, no number; "
                "set task.name=tabular_classification, or name another target"
            )
        name = find_number(source, self._config)
        values = arrays[name].astype(np.float64)
        _check_finite(source.name, name, values, arrays.get(SOURCE_ROW, np.arange(len(values))))
        if values.std() == 0:
            raise DataError(f"{source.name}: {name} is {values[0]:g} in all training rows; there is nothing to learn")
        return {"target": name, "target_mean": float(values.mean()), "target_spread": float(values.std())}

    def _check_target(self, name: str, arrays: Arrays, rows: np.ndarray) -> None:
        target = self.metadata["target"]
        _check_finite(name, target, arrays[target], rows)

    def _read_targets(self, table: Table, name: str) -> np.ndarray:
        values = numbers_of(table, self._schema.target or _number(table, name))
        return ((values - self.metadata["target_mean"]) / self.metadata["target_spread"]).astype(np.float32)

    def scores_of(self, predictions: np.ndarray) -> dict[str, list]:
        return {f"predicted {self.metadata.get('target_column', self.metadata['target'])}": predictions.tolist()}

    def _targets(self, examples: Batch) -> Float[Array, " batch"]:
        mean, spread = (jnp.float32(self.metadata[name]) for name in ("target_mean", "target_spread"))
        return (examples[self.metadata["target"]].astype(jnp.float32) - mean) / spread

    def facts(self) -> list[list[Any]]:
        data, *rows = super().facts()
        shown = "mean {target_mean:.4g}, standard deviation {target_spread:.4g} in training".format(**self.metadata)
        return [data, [self.metadata.get("target_column", self.metadata["target"]), shown], *rows]

    def predictions_of(self, outputs: Float[Array, "batch *members 1"]) -> Float[Array, " batch"]:
        return _mean_of_members(outputs) * self.metadata["target_spread"] + self.metadata["target_mean"]

    def outputs_of(self, predictions: Float[Array, " batch"]) -> Float[Array, "batch 1"]:
        return ((predictions - self.metadata["target_mean"]) / self.metadata["target_spread"])[:, None]

    def loss_and_metrics(self, outputs: Float[Array, "batch *members 1"], batch: Batch) -> Metrics:
        """The loss is the mean of the members'; everything else is of their mean."""
        targets, weights = batch["targets"], batch["loss_weights"]
        spread, mean = jnp.float32(self.metadata["target_spread"]), _mean_of_members(outputs)
        loss = error = squared_error(mean[:, None], targets[:, None], weights, variance=1.0)
        if outputs.ndim == 3:
            each, counted = _for_members(outputs, batch)
            loss = squared_error(outputs, each[..., None], counted, variance=1.0)
        return {
            "loss": loss,
            "r2": RSquared.of(mean, targets, weights),
            "rmse": RootMean(error.total * spread**2, error.weight),
            "mae": absolute_error(mean * spread, targets * spread, weights),
        }


def _mean_of_members(outputs: Float[Array, "batch *members 1"]) -> Float[Array, " batch"]:
    return outputs[:, 0] if outputs.ndim == 2 else jnp.mean(outputs[:, :, 0], axis=1)


def _for_members(outputs: Float[Array, "batch members outputs"], batch: Batch) -> tuple[Array, Array]:
    """Targets and weights of an example for each of its members."""
    return tuple(jnp.broadcast_to(batch[name][:, None], outputs.shape[:2]) for name in ("targets", "loss_weights"))


def _number(table: Table, name: str) -> Column:
    """How a column of numbers is read, where a run of an earlier version or a packed data set does not say it."""
    choices = Choices(numbers=(name,))
    return column_of(table, name, choices, decimal_marks(table, choices, [name]))


def _check_finite(name: str, target: str, values: np.ndarray, rows: np.ndarray) -> None:
    for place in np.flatnonzero(~np.isfinite(values))[:1]:
        raise DataError(f"{name}: {target} of row {rows[place]} is {values[place]}; leave the row out")


_SCALED = {"none": "not scaled", "standard": "standardised", "quantile": "mapped to a normal distribution by rank"}


def _schema_of(metadata: Mapping[str, Any]) -> Schema | None:
    return Schema.from_json(metadata["table"]) if "table" in metadata else None
