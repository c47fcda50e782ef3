"""Which features of a data set a task reads, by the config's knobs, by their usual names, or by their types."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Array, Int

from flaxformer_lab.data.own.address import CONTENT, parse_address
from flaxformer_lab.data.own.builder import content_digest
from flaxformer_lab.data.own.contents import SOURCE_ROW
from flaxformer_lab.data.source import Source
from flaxformer_lab.errors import ConfigError, DataError

Fits = Callable[[tuple[int, ...], np.dtype], bool]  # of a feature's shape and type
MOST_CLASSES = 1000  # distinct whole numbers that are still taken for classes


def is_image(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Rows and columns, and perhaps channels."""
    del dtype
    return len(shape) in (2, 3)


def is_row(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """A row of a table."""
    del dtype
    return len(shape) == 1


def is_label(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """A whole number."""
    return shape == () and dtype.kind in "biu"


def find_feature(source: Source, config: Any, knob: str, usual: str, fits: Fits) -> str:
    """The feature that `task.KNOB` names; without it the usual one, or the only one that fits.

    Raises:
        ConfigError: there is none, or there are several.
    """
    features = source.features.items()
    fitting = [name for name, (shape, dtype) in features if fits(shape, dtype) and name != SOURCE_ROW]
    if knob == "label":  # a class label goes before other numbers
        labels = [name for name in fitting if isinstance(source.info.features[name], tfds.features.ClassLabel)]
        fitting = labels or fitting
    return choose(source, config, knob, usual, fitting)


def find_number(source: Source, config: Any) -> str:
    """The feature that `task.target` names; without it `target`, or the only number that is no class label.

    Raises:
        ConfigError: there is none, or there are several.
    """
    fitting = [
        name
        for name, (shape, dtype) in source.features.items()
        if shape == ()
        and dtype.kind in "iuf"
        and name != SOURCE_ROW
        and not isinstance(source.info.features[name], tfds.features.ClassLabel)
    ]
    return choose(source, config, "target", "target", fitting)


def find_text(source: Source, config: Any) -> str:
    """The feature that `task.feature` names; without it `text`, or the only text."""
    texts = [name for name, each in source.info.features.items() if isinstance(each, tfds.features.Text)]
    return choose(source, config, "feature", "text", texts)


def choose(source: Source, config: Any, knob: str, usual: str, fitting: list[str]) -> str:
    """One of the features that fit."""
    asked, dataset = getattr(config, knob), f"task.dataset={config.dataset}"
    if asked is not None:
        if asked in fitting:
            return asked
        raise ConfigError(
            f"task.{knob}={asked} is no {usual} of {dataset}; choose from {', '.join(fitting) or 'none'}: it has "
            f"{', '.join(source.info.features)}"
        )
    if usual in fitting or len(fitting) == 1:
        return usual if usual in fitting else fitting[0]
    if fitting:
        raise ConfigError(
            f"{dataset} has several features that may be the {usual}; set task.{knob} to one of {', '.join(fitting)}"
        )
    shape = "" if usual == "text" else " of fixed shape"
    other = source.features.get(usual) if knob == "label" else None
    found = f", but {usual} is {other[1]}, neither whole numbers nor texts" if other else ""
    raise ConfigError(
        f"{dataset} has no {usual}{shape}, which {config.name} needs; it has {', '.join(source.info.features)}{found}"
    )


def classes_of(source: Source, label: str) -> dict[str, Any]:
    """`num_classes` of a label, `class_names` where they have names, `classes` where others than 0, 1, 2 ... mean them.

    Raises:
        DataError: the label has too many values to be one.
    """
    if isinstance(source.info.features[label], tfds.features.ClassLabel):
        number, names = source.num_classes(label), source.info.features[label].names
        return {"num_classes": number} | (
            {} if names == [str(each) for each in range(number)] else {"class_names": names}
        )
    values = source.load()[label]
    distinct = np.unique(values).astype(np.int64)
    if len(distinct) > min(MOST_CLASSES, len(values) // 2):
        raise DataError(
            f"{source.name}: {label} has {len(distinct)} distinct values in {len(values)} rows, so it is no class "
            "label; set task.label to one that is"
        )
    distinct = distinct[distinct >= 0]  # a negative one is no class, and refused where it occurs
    is_usual = np.array_equal(distinct, np.arange(len(distinct)))
    return {"num_classes": len(distinct)} | ({} if is_usual else {"classes": distinct.tolist()})


def content_of(source: Source) -> dict[str, str]:
    """`content`, a digest of own files, which metadata keep; nothing for other data sets."""
    content = (source.info.metadata or {}).get(CONTENT)
    return {} if content is None else {CONTENT: content}


def content_of_files(dataset: str) -> dict[str, str]:
    """`content_of` series and purchases, whose files are read at each start, without a prepared copy."""
    if dataset.startswith("ett:"):
        return {CONTENT: content_digest(Path(dataset.removeprefix("ett:")).expanduser())}
    address = parse_address(dataset)
    is_read = address is not None and address.kind in ("csv", "parquet")
    return {CONTENT: content_digest(address.path)} if is_read else {}


def warn_of_change(source: Source, metadata: Mapping[str, Any]) -> None:
    """Says so where a run looks at own files that are not those on which it began."""
    _warn_of_change(source.name, content_of(source), metadata)


def warn_of_changed_files(dataset: str, metadata: Mapping[str, Any]) -> None:
    """`warn_of_change` of files that are read without a prepared copy."""
    _warn_of_change(dataset, content_of_files(dataset), metadata)


def _warn_of_change(name: str, content: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
    if metadata.get(CONTENT) not in (None, content.get(CONTENT)):
        print(f"{name}: the files changed since this run began; its scaling and classes stay", file=sys.stderr)


def require_classes(source: Source, label: tfds.features.FeatureConnector, metadata: Mapping[str, Any]) -> None:
    """Raises DataError where own files changed so that a number stands for another class than in training."""
    if CONTENT not in metadata or not isinstance(label, tfds.features.ClassLabel):
        return
    now, known = label.names, class_names(metadata)
    if now != known:
        differing = sorted(set(now) ^ set(known))
        raise DataError(
            f"{source.name}: the files changed since this run began, and its classes are "
            f"{f'others now, like {differing[0]}' if differing else 'in another order now'}; restore them, or begin a "
            "new run"
        )


def class_names(metadata: Mapping[str, Any]) -> list[str]:
    """What each output stands for, in the order of the classes."""
    return list(map(str, metadata.get("class_names") or metadata.get("classes") or range(metadata["num_classes"])))


def class_numbers(metadata: Mapping[str, Any], labels: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """The classes of labels, counted from 0."""
    labels, classes = labels.astype(jnp.int32), metadata.get("classes")
    return labels if classes is None else jnp.searchsorted(jnp.asarray(classes, jnp.int32), labels)


def facts_of_classes(label: str, metadata: Mapping[str, Any]) -> list[Any]:
    """How many classes there are, and the first of them."""
    classes = metadata.get("class_names") or metadata.get("classes")
    shown = f" ({', '.join(map(str, classes[:10]))}{' ...' if len(classes) > 10 else ''})" if classes else ""
    return [f"classes of {label}", f"{metadata['num_classes']}{shown}"]


def check_labels(name: str, label: str, metadata: Any, values: np.ndarray, rows: np.ndarray) -> None:
    """Raises DataError where a label is none of the classes. name: of the split."""
    classes = metadata.get("classes") or range(metadata["num_classes"])
    for place in np.flatnonzero(~np.isin(values, np.asarray(classes)))[:1]:
        hint = "; -1 marks an example without a label" if values[place] == -1 else ""
        shown = f"{min(classes)} to {max(classes)}" if len(classes) > 10 else ", ".join(map(str, classes))
        raise DataError(
            f"{name}: {label} of row {rows[place]} is {values[place]}, which is none of the classes {shown}{hint}; "
            "take the row out of the data set, or correct it"
        )
