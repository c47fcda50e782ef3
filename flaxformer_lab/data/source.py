"""Opens the splits of any TFDS data set by name, without TensorFlow, and reads them in batches."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, Shaped
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from flaxformer_lab.data.prepare import damaged, prepare, quiet
from flaxformer_lab.errors import DataError

SPLITS = ("train", "validation", "test")
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of one split, of which any can be read at any time.

    Attributes:
      name: what it is called in errors, as in `lab_digits/1.0.0 train`.
      info: what TFDS knows about the data set.
      examples: the examples as TFDS decodes them.
    """

    name: str
    info: tfds.core.DatasetInfo
    examples: Sequence

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def features(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The shape and dtype of each feature that is a number or an array of fixed shape."""
        return {
            name: (tuple(feature.shape), np.dtype(feature.np_dtype))
            for name, feature in self.info.features.items()
            if isinstance(feature.shape, tuple)
            and None not in feature.shape
            and np.dtype(feature.np_dtype).kind in "biuf"
        }

    def num_classes(self, feature: str) -> int:
        """Returns how many classes a label has. Raises DataError where that feature is no label."""
        label = dict(self.info.features.items()).get(feature)
        if not isinstance(label, tfds.features.ClassLabel) or label.num_classes is None:
            raise DataError(f"{self.name} has no class label {feature!r}; it has {', '.join(self.info.features)}")
        return label.num_classes

    def num_bytes(self) -> int:
        """Returns the memory that `load` takes."""
        return len(self) * sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.features.values())

    def read(self, indices: Int[np.ndarray, " batch"]) -> dict[str, Shaped[np.ndarray, "batch ..."]]:
        """Returns the features of fixed shape of these examples, each stacked to one array."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples; asked for {indices.min()} to {indices.max()}")
        with _reading(self.name, self.info):
            examples = self.examples.__getitems__(indices.tolist())
            return {
                name: np.array([example[name] for example in examples], dtype).reshape(len(indices), *shape)
                for name, (shape, dtype) in self.features.items()
            }

    def empty(self) -> dict[str, Shaped[np.ndarray, "examples ..."]]:
        """Returns room for the features of fixed shape of all examples; it holds anything."""
        return {name: np.empty((len(self), *shape), dtype) for name, (shape, dtype) in self.features.items()}

    def load(self) -> dict[str, Shaped[np.ndarray, "examples ..."]]:
        """Returns the features of fixed shape of all examples."""
        arrays = self.empty()
        for start in range(0, len(self), _CHUNK):
            chunk = np.arange(start, min(start + _CHUNK, len(self)))
            for name, values in self.read(chunk).items():
                arrays[name][chunk] = values
        return arrays

    def records(self) -> Iterator[dict]:
        """Yields the examples in order, with every feature; texts as `str`."""
        texts = [name for name, feature in self.info.features.items() if isinstance(feature, tfds.features.Text)]
        for index in range(len(self)):
            with _reading(self.name, self.info):
                record = self.examples[index]
                record.update({name: record[name].decode("utf-8") for name in texts})
            yield record


def open_split(dataset: str, split: str) -> Source:
    """Opens one split of a TFDS data set, which is built first if need be (see `prepare`).

    A data set without a split of its own for validation or for test lends a tenth of train to each that it lacks, from
    train's end (TFDS stores examples in shuffled order): with train and test alone, validation is the last tenth of
    train; with train alone, train is its first 80%, validation the next tenth and test the last.

    Args:
      dataset: a TFDS name, with a config and a version if wanted: `name`, `name/config`, `name/config:1.2.3`.
      split: train, validation or test.

    Raises:
      DataError: there is no such data set or split, or it cannot be fetched, written or trusted.
    """
    if split not in SPLITS:
        raise DataError(f"split={split!r} is none of {', '.join(SPLITS)}")
    builder = prepare(dataset)
    stored = [name for name in builder.info.splits if builder.info.splits[name].num_examples]
    if split not in stored and "train" not in stored:
        raise DataError(f"{dataset} has no split {split}, and no train to take it from; it has {', '.join(stored)}")
    part = _part(split, stored)
    if not builder.info.splits[part].num_examples:
        raise DataError(f"{dataset} has too few examples to take {part} of them for {split}; use a larger data set")
    name = f"{builder.info.full_name} {part}"
    with _reading(name, builder.info), quiet():
        examples = builder.as_data_source(part, file_format="array_record")
        _check_sizes(builder.info.splits[part].file_instructions)
        examples[0]  # What cannot be decoded at all shows here.
    return Source(name, builder.info, examples)


def _part(split: str, stored: list[str]) -> str:
    """Says, as TFDS writes it, which part of the stored splits serves as this one."""
    lacking = [name for name in ("validation", "test") if name not in stored]
    kept = 100 - 10 * len(lacking)
    if split == "train":
        return f"train[:{kept}%]" if lacking else "train"
    if split in stored:
        return split
    start = kept + 10 * lacking.index(split)
    return f"train[{start}%:{start + 10}%]"


def _check_sizes(shards: Sequence) -> None:
    """Raises ValueError if a file has not as many records as dataset_info.json says."""
    for shard in shards:
        found = ArrayRecordFileAdapter.num_examples(shard.filename)
        if found != shard.examples_in_shard:
            raise ValueError(f"{shard.filename} has {found} examples, not {shard.examples_in_shard}")


@contextlib.contextmanager
def _reading(name: str, info: tfds.core.DatasetInfo) -> Iterator[None]:
    """Turns whatever stops TFDS from reading into a DataError; array_record checks the hashes of what it reads."""
    try:
        yield
    except MemoryError:
        raise
    except ImportError as error:
        raise DataError(f"{name} cannot be decoded: {error}") from error
    except Exception as error:
        raise damaged(name, Path(info.data_dir), error) from error
