"""Opens the splits of any TFDS data set by name, without TensorFlow, and reads them in batches."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, Shaped
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from flaxformer_lab.data.image_files import resize_image
from flaxformer_lab.data.own.address import CONTENT, parse_address
from flaxformer_lab.data.own.contents import SPLITS
from flaxformer_lab.data.prepare import damaged, prepare, quiet
from flaxformer_lab.errors import DataError, LabError

PACKED = "packed"  # among a data set's metadata: each of its records holds many rows, along the first axis
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class _RowInfo:
    """What a task reads of TFDS's description, with the features of a row instead of those of a packed record."""

    features: tfds.features.FeaturesDict
    metadata: Mapping[str, object]
    data_dir: str

    @classmethod
    def of(cls, info: tfds.core.DatasetInfo) -> "_RowInfo":
        features = {}
        for name, packed in info.features.items():
            is_sequence = isinstance(packed, tfds.features.Sequence)
            row = tfds.features.Tensor(shape=packed.shape[1:], dtype=packed.np_dtype)
            features[name] = packed.feature if is_sequence else row
        return cls(tfds.features.FeaturesDict(features), info.metadata, info.data_dir)


Info = tfds.core.DatasetInfo | _RowInfo


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of one split, with random access.

    Attributes:
      name: its name in errors, like `lab_digits/1.0.0 train`.
      info: TFDS's description of the data set, or that of its rows.
      examples: the examples as TFDS decodes them.
      capacity: for each feature whose size differs from example to example, the size that it is padded to along the
        axes that differ. A part of a sequence of records has the name of both, like `objects/bbox`.
      image_size: rows and columns to which features that are images are resized as they are read; None leaves them.
    """

    name: str
    info: Info
    examples: Sequence
    capacity: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    image_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def features(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The shape and dtype of each feature that is a number or an array, padded where it has a capacity.

        A padded feature `x` comes with `x_shape`, the sizes of the axes that differ before they were padded.
        """
        found = {}
        for name, (shape, dtype) in self._stored_features().items():
            ragged = [axis for axis, size in enumerate(shape) if size is None]
            if self._is_resized(name):
                found[name] = ((*self.image_size, *shape[2:]), dtype)
            elif ragged and name in self.capacity:
                found[name] = (_padded_shape(shape, self.capacity[name]), dtype)
                found[f"{name}_shape"] = ((len(ragged),), np.dtype(np.int32))
            elif not ragged and "/" not in name:
                found[name] = (shape, dtype)
        return found

    def _is_resized(self, name: str) -> bool:
        shape, _ = self._stored_features()[name]
        return self.image_size is not None and len(shape) in (2, 3) and None not in shape[2:] and "/" not in name

    def _stored_features(self) -> dict[str, tuple[tuple[int | None, ...], np.dtype]]:
        """Every feature that is made of numbers, as TFDS has it: None for an axis whose size differs."""
        found = {}
        for name, feature in self.info.features.items():
            parts = {name: (feature.shape, feature.np_dtype)}
            if isinstance(feature.shape, dict):
                parts = {f"{name}/{part}": (feature.shape[part], feature.np_dtype[part]) for part in feature.shape}
            for path, (shape, dtype) in parts.items():
                if isinstance(shape, tuple) and np.dtype(dtype).kind in "biuf":
                    found[path] = (tuple(shape), np.dtype(dtype))
        return found

    def num_classes(self, feature: str) -> int:
        """Returns how many classes a label has. Raises DataError where the feature is not a label."""
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
        arrays = {}
        for name, (shape, dtype) in self.features.items():
            if name in self.info.features and self._is_resized(name):
                resized = [_resized(example[name], self.image_size) for example in examples]
                arrays[name] = np.array(resized, dtype).reshape(len(indices), *shape)
            elif name in self.capacity:
                arrays |= self._pad(name, examples, indices, shape, dtype)
            elif name.removesuffix("_shape") not in self.capacity:
                with _reading(self.name, self.info):
                    values = np.array([example[name] for example in examples], dtype)
                    arrays[name] = values.reshape(len(indices), *shape)
        return arrays

    def _pad(self, name: str, examples: Sequence, indices: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        """A feature whose size differs, padded with zeros at the end of each axis, and its sizes."""
        stored, _ = self._stored_features()[name]
        ragged = [axis for axis, size in enumerate(stored) if size is None]
        padded = np.zeros((len(indices), *shape), dtype)
        sizes = np.zeros((len(indices), len(ragged)), np.int32)
        for number, (index, example) in enumerate(zip(indices, examples, strict=True)):
            whole, _, part = name.partition("/")
            values = np.asarray(example[whole][part] if part else example[whole], dtype)
            values = values.reshape([0 if size is None else size for size in stored]) if values.size == 0 else values
            sizes[number] = [values.shape[axis] for axis in ragged]
            if any(size > most for size, most in zip(values.shape, shape, strict=True)):
                raise DataError(
                    f"{self.name}: {name} of example {index} has the shape {values.shape}, but there is room for "
                    f"{shape}; raise the capacity of {name}"
                )
            padded[number][tuple(map(slice, values.shape))] = values
        return {name: padded, f"{name}_shape": sizes}

    def empty(self) -> dict[str, Shaped[np.ndarray, "examples ..."]]:
        """Returns uninitialised arrays for the features of fixed shape of all examples."""
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


def open_split(dataset: str, split: str, capacity: Mapping[str, tuple[int, ...]] | None = None) -> Source:
    """Opens one split of a TFDS data set; builds the data set first if necessary (see `prepare`).

    A data set that lacks a validation or a test split takes a tenth of train for each, from the end (TFDS stores
    examples in shuffled order): with train and test, validation is the last tenth of train; with train alone, train is
    its first 80%, validation the next tenth and test the last.

    Args:
      dataset: a TFDS name or own files, as in `prepare`.
      split: train, validation or test.
      capacity: as in `Source`.

    Raises:
      ConfigError: an address of own files that cannot be understood.
      DataError: there is no such data set or split, it cannot be fetched, written or trusted, or a capacity does not
        fit its feature.
    """
    if split not in SPLITS:
        raise DataError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    builder = prepare(dataset)
    stored = [name for name in builder.info.splits if builder.info.splits[name].num_examples]
    if split not in stored and "train" not in stored:
        raise DataError(f"{dataset} has no split {split}, and no train to take it from; it has {', '.join(stored)}")
    part = _part(split, stored)
    if not builder.info.splits[part].num_examples:
        raise DataError(f"{dataset} has too few examples to take {part} of them for {split}; use a larger data set")
    address = parse_address(dataset)
    name = f"{address.source if address else builder.info.full_name} {part}"
    with _reading(name, builder.info), quiet():
        examples = builder.as_data_source(part, file_format="array_record")
        _check_sizes(builder.info.splits[part].file_instructions)
        examples[0]  # Raises here if examples cannot be decoded.
    info = builder.info
    if (info.metadata or {}).get(PACKED):
        with _reading(name, info):
            info, examples = _RowInfo.of(info), _Rows(examples)
    source = Source(name, info, examples, capacity or {})
    _check_capacity(source)
    return source


class _Rows(Sequence):
    """The rows of packed records, one after the other; decoded once."""

    def __init__(self, records: Sequence):
        parts = records.__getitems__(list(range(len(records))))
        self._arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> dict:
        return {name: array[index] for name, array in self._arrays.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        return [self[index] for index in indices]


def open_split_again(dataset: str, split: str, seed: int) -> Source:
    """Opens a split of the same size as the data set's own, of all its examples in a random order of `seed`.

    Raises:
      DataError: as `open_split`.
    """
    sources = [open_split(dataset, name) for name in SPLITS]
    every = [(source.examples, row) for source in sources for row in range(len(source))]
    number, sizes = SPLITS.index(split), [len(source) for source in sources]
    order = np.random.default_rng(seed).permutation(len(every))
    rows = np.split(order, np.cumsum(sizes)[:-1])[number]
    name = f"{sources[number].name}, split again by {seed}"
    return dataclasses.replace(sources[number], name=name, examples=_Chosen([every[row] for row in rows]))


def some_examples(source: Source, number: int) -> Source:
    """So many examples of a source, always the same: `some_rows`.

    Raises:
      DataError: it has fewer.
    """
    if number > len(source):
        raise DataError(f"{source.name} has {len(source)} examples, not {number}; ask for as many at most")
    return dataclasses.replace(source, examples=_Chosen([(source.examples, row) for row in some_rows(source, number)]))


def some_rows(source: Source, number: int) -> Int[np.ndarray, " number"]:
    """The rows of so many examples, or of all where there are fewer: the first ones in a random order.

    TFDS stores examples in random order; own files may list them by class.
    """
    order = np.arange(len(source))
    if CONTENT in (source.info.metadata or {}):
        order = np.random.default_rng(0).permutation(len(source))
    return np.sort(order[:number])


class _Chosen(Sequence):
    """Examples of several sources, each by its source and its row there; read as TFDS's sources are."""

    def __init__(self, places: Sequence[tuple[Sequence, int | np.integer]]):
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict:
        examples, row = self._places[index]
        return examples[row]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        return [self[index] for index in indices]


def _check_capacity(source: Source) -> None:
    stored = source._stored_features()
    ragged = {name: shape.count(None) for name, (shape, _) in stored.items() if None in shape}
    for name, sizes in source.capacity.items():
        if len(sizes) != ragged.get(name, 0) or min(sizes, default=0) < 1:
            known = ", ".join(f"{each} ({axes} axes)" for each, axes in ragged.items()) or "none"
            raise DataError(
                f"{source.name}: capacity {name}={tuple(sizes)} must have a positive size for each axis of {name} that "
                f"differs from example to example; features with such axes: {known}"
            )


def _resized(values: Shaped[np.ndarray, "rows columns ..."], size: tuple[int, int]) -> np.ndarray:
    """An image that may lack the axis of channels."""
    return resize_image(values.reshape(*values.shape[:2], -1), size).reshape(*size, *values.shape[2:])


def _padded_shape(shape: tuple[int | None, ...], sizes: Sequence[int]) -> tuple[int, ...]:
    rest = iter(sizes)
    return tuple(next(rest) if size is None else size for size in shape)


def _part(split: str, stored: list[str]) -> str:
    """The slice of the stored splits that is used as this one, in TFDS's syntax."""
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
def _reading(name: str, info: Info) -> Iterator[None]:
    """Turns errors while TFDS reads into a DataError; array_record checks the hashes of its records."""
    try:
        yield
    except (MemoryError, LabError):
        raise
    except ImportError as error:
        raise DataError(f"{name} cannot be decoded: {error}") from error
    except Exception as error:
        raise damaged(name, Path(info.data_dir), error) from error
